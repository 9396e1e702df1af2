/* `shardfc data info DIR`: what a set holds. */
#ifndef SFC_WORKER_DATA_INFO_H
#define SFC_WORKER_DATA_INFO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/base/status.h"
#include "worker/data/dataset.h"
#include "worker/data/progress.h"

struct sfc_data_report {
    struct sfc_dataset_info info;
    uint64_t used_classes;                 /* classes with at least one sample */
    uint64_t min_per_class, max_per_class; /* over the used classes */
    uint64_t bytes;                        /* of the record file */
    bool verified;                         /* every image was decoded */
    uint64_t broken;                       /* of them unreadable */
    uint64_t first_broken;                 /* sample id, when broken > 0 */
    char first_broken_cause[512];
};

/* verify: also decode every image; broken ones are counted, not an error. */
int sfc_data_info(const char *path, bool verify, sfc_progress_fn progress, void *progress_arg,
                  struct sfc_data_report *report, struct sfc_error *err);
/* One JSON object, malloc'ed text; NULL when memory is short. */
char *sfc_data_report_json(const struct sfc_data_report *report);
/* The same for people; several lines. */
void sfc_data_report_text(const struct sfc_data_report *report, FILE *file);

#endif
