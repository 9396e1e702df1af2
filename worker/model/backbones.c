/* The backbones that ShardFC knows, as tables. A new one is a new table and an entry at the end. */
#include "worker/model/layers.h"

static const struct sfc_row tiny_rows[] = {
    {.kind = SFC_ROW_CONV, .name = "conv1", .channels = 24, .kernel = 5, .stride = 2, .pad = 2},
    {.kind = SFC_ROW_CONV, .name = "conv2", .channels = 64, .kernel = 3, .stride = 2, .pad = 1},
    {.kind = SFC_ROW_CONV, .name = "conv3", .channels = 64, .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_CONV, .name = "conv4", .channels = 128, .kernel = 3, .stride = 2, .pad = 1},
    {.kind = SFC_ROW_DENSE, .name = "fc"},
    {.kind = SFC_ROW_NORM, .name = "head", .linear = true},
};

static const struct sfc_backbone tiny = {
    .name = "tiny",
    .input = {.width = 32, .height = 32, .channels = 1},
    .rows = tiny_rows,
    .row_count = sizeof tiny_rows / sizeof tiny_rows[0],
};

/* MobileFaceNet (Chen et al. 2018), table 1. */
static const struct sfc_row mbf_rows[] = {
    {.kind = SFC_ROW_CONV, .name = "conv1", .channels = 64, .kernel = 3, .stride = 2, .pad = 1},
    {.kind = SFC_ROW_DEPTHWISE, .name = "conv2", .kernel = 3, .stride = 1, .pad = 1},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "stage1",
     .expand = 2,
     .channels = 64,
     .repeat = 5,
     .stride = 2},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "stage2",
     .expand = 4,
     .channels = 128,
     .repeat = 1,
     .stride = 2},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "stage3",
     .expand = 2,
     .channels = 128,
     .repeat = 6,
     .stride = 1},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "stage4",
     .expand = 4,
     .channels = 128,
     .repeat = 1,
     .stride = 2},
    {.kind = SFC_ROW_BOTTLENECK,
     .name = "stage5",
     .expand = 2,
     .channels = 128,
     .repeat = 2,
     .stride = 1},
    {.kind = SFC_ROW_CONV, .name = "conv3", .channels = 512, .kernel = 1, .stride = 1},
    {.kind = SFC_ROW_GLOBAL_DEPTHWISE, .name = "gdconv", .linear = true},
    {.kind = SFC_ROW_CONV, .name = "head", .kernel = 1, .stride = 1, .linear = true},
};

static const struct sfc_backbone mbf = {
    .name = "mbf",
    .input = {.width = 112, .height = 112, .channels = 3},
    .rows = mbf_rows,
    .row_count = sizeof mbf_rows / sizeof mbf_rows[0],
};

const struct sfc_backbone *const sfc_backbones[] = {&tiny, &mbf};
const size_t sfc_backbone_count = sizeof sfc_backbones / sizeof sfc_backbones[0];
