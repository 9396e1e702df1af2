#include "server/ctl/json_memory.h"

#include <jansson.h>
#include <stdlib.h>

static _Thread_local bool failed;

static void *watched_malloc(size_t size)
{
    void *memory = malloc(size);
    failed = failed || memory == NULL;
    return memory;
}

void sfc_json_watch(void)
{
    json_set_alloc_funcs(watched_malloc, free);
    failed = false;
}

bool sfc_json_out_of_memory(void)
{
    return failed;
}
