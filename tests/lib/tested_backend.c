#include "tests/lib/tested_backend.h"

#include <stdio.h>

#include "kernels/backend.h"

bool tested_backend_missing(void)
{
    struct sfc_backend *backend = NULL;
    struct sfc_error err;
    int rc = sfc_backend_open(TESTED, 1, &backend, &err);
    sfc_backend_close(backend);
    if (rc != SFC_EUNSUPPORTED) {
        return false; /* other failures are the tests' to show */
    }
    printf("skipped: no GPU (%s)\n", err.text);
    return true;
}
