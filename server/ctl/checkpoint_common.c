#include "server/ctl/checkpoint_common.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t sfc_config_dense_size(const Shardfc__V1__RunConfig *config)
{
    uint64_t size = 0;
    for (size_t i = 0; i < config->n_segments; i++) {
        uint64_t length = 1;
        for (size_t k = 0; k < config->segments[i]->n_shape; k++) {
            length *= config->segments[i]->shape[k];
        }
        size += length;
    }
    return size;
}

bool sfc_config_is_dense(const Shardfc__V1__RunConfig *config)
{
    return config->momentum_mode != NULL && strcmp(config->momentum_mode, "dense") == 0;
}

bool sfc_config_is_adamw(const Shardfc__V1__RunConfig *config)
{
    return config->optimizer != NULL && strcmp(config->optimizer, "adamw") == 0;
}

void sfc_growths_free(Shardfc__V1__Growth **growths, size_t count)
{
    for (size_t i = 0; growths != NULL && i < count; i++) {
        if (growths[i] != NULL) {
            free(growths[i]->data_digest);
        }
        free(growths[i]);
    }
    free(growths);
}

int sfc_checkpoint_version(const Shardfc__V1__RunConfig *config, size_t lr_changes, size_t growths)
{
    if (growths > 0) {
        return SFC_CHECKPOINT_VERSION_GROWN;
    }
    if (lr_changes > 0) {
        return SFC_CHECKPOINT_VERSION_LR;
    }
    return sfc_config_is_adamw(config) ? SFC_CHECKPOINT_VERSION_ADAMW : SFC_CHECKPOINT_VERSION;
}

static uint64_t units_of(const Shardfc__V1__RunConfig *config, Shardfc__V1__BlockKind kind)
{
    return kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK ? config->classes
                                                        : sfc_config_dense_size(config);
}

static uint64_t units_per_block(const Shardfc__V1__RunConfig *config, Shardfc__V1__BlockKind kind)
{
    return kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK ? config->block_size
                                                        : config->dense_block_size;
}

uint64_t sfc_config_block_count(const Shardfc__V1__RunConfig *config, Shardfc__V1__BlockKind kind)
{
    if (kind == SHARDFC__V1__BLOCK_KIND__HISTORY) {
        return sfc_config_is_dense(config);
    }
    uint64_t per_block = units_per_block(config, kind);
    return per_block == 0 ? 0 : (units_of(config, kind) + per_block - 1) / per_block;
}

/* Rows of a class block, floats of a dense block. */
static uint64_t block_units(const Shardfc__V1__RunConfig *config, Shardfc__V1__BlockKind kind,
                            uint64_t block)
{
    uint64_t per_block = units_per_block(config, kind);
    uint64_t left = units_of(config, kind) - block * per_block;
    return left < per_block ? left : per_block;
}

uint64_t sfc_config_part_elements(const Shardfc__V1__RunConfig *config, uint64_t step,
                                  Shardfc__V1__BlockKind kind, uint64_t block,
                                  Shardfc__V1__BlockPart part)
{
    bool is_class = kind == SHARDFC__V1__BLOCK_KIND__CLASS_BLOCK;
    if (kind == SHARDFC__V1__BLOCK_KIND__HISTORY) {
        return part == SHARDFC__V1__BLOCK_PART__VALUES ? step : 0;
    }
    if (part == SHARDFC__V1__BLOCK_PART__LAST_STEP) {
        return is_class && sfc_config_is_dense(config) ? block_units(config, kind, block) : 0;
    }
    if (part == SHARDFC__V1__BLOCK_PART__SECOND_MOMENT && !sfc_config_is_adamw(config)) {
        return 0;
    }
    return block_units(config, kind, block) * (is_class ? config->dim : 1);
}

uint64_t sfc_config_block_elements(const Shardfc__V1__RunConfig *config,
                                   Shardfc__V1__BlockKind kind, uint64_t block)
{
    return sfc_config_part_elements(config, 0, kind, block, SHARDFC__V1__BLOCK_PART__VALUES);
}

int sfc_block_table_init(struct sfc_block_table *table, const Shardfc__V1__RunConfig *config,
                         uint64_t step, struct sfc_error *err)
{
    memset(table, 0, sizeof *table);
    for (int k = 0; k < SFC_CHECKPOINT_KINDS; k++) {
        Shardfc__V1__BlockKind kind = (Shardfc__V1__BlockKind)k;
        uint64_t count = sfc_config_block_count(config, kind);
        table->count[k] = count;
        table->entry[k] = calloc(count + 1, sizeof *table->entry[k]);
        if (table->entry[k] == NULL) {
            sfc_block_table_free(table);
            return sfc_fail(err, SFC_ENOMEM, "out of memory for %" PRIu64 " blocks", count);
        }
        for (uint64_t b = 0; b < count; b++) {
            struct sfc_block_entry *entry = &table->entry[k][b];
            entry->elements =
                sfc_config_part_elements(config, step, kind, b, SHARDFC__V1__BLOCK_PART__VALUES);
            for (int part = 0; part < SFC_CHECKPOINT_PARTS; part++) {
                entry->floats +=
                    sfc_config_part_elements(config, step, kind, b, (Shardfc__V1__BlockPart)part);
            }
        }
    }
    return SFC_OK;
}

void sfc_block_table_free(struct sfc_block_table *table)
{
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS; kind++) {
        free(table->entry[kind]);
        table->entry[kind] = NULL;
    }
}

void sfc_block_file_name(Shardfc__V1__BlockKind kind, uint64_t block, char out[32])
{
    static const char *const names[SFC_CHECKPOINT_KINDS] = {"class", "dense", "history"};
    snprintf(out, 32, "%s-%06" PRIu64 ".f32", names[kind], block % 1000000000000);
}

void sfc_digest_hex(XXH128_hash_t digest, char out[SFC_DIGEST_HEX])
{
    snprintf(out, SFC_DIGEST_HEX, "%016" PRIx64 "%016" PRIx64, (uint64_t)digest.high64,
             (uint64_t)digest.low64);
}

int sfc_digest_parse(const char *hex, XXH128_hash_t *out)
{
    if (hex == NULL || strlen(hex) != SFC_DIGEST_HEX - 1 ||
        strspn(hex, "0123456789abcdef") != SFC_DIGEST_HEX - 1) {
        return SFC_ECORRUPT;
    }
    char high[17];
    memcpy(high, hex, 16);
    high[16] = '\0';
    out->high64 = strtoull(high, NULL, 16);
    out->low64 = strtoull(hex + 16, NULL, 16);
    return SFC_OK;
}

static void update_u64(XXH3_state_t *state, uint64_t value)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    XXH3_128bits_update(state, bytes, sizeof bytes);
}

/* Packed configuration without its name: protobuf-c packs fields in a fixed order. */
static int update_config(XXH3_state_t *state, const Shardfc__V1__RunConfig *config,
                         struct sfc_error *err)
{
    Shardfc__V1__RunConfig nameless = *config;
    nameless.name = "";
    size_t size = shardfc__v1__run_config__get_packed_size(&nameless);
    uint8_t *packed = malloc(size + 1);
    if (packed == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for the run configuration");
    }
    shardfc__v1__run_config__pack(&nameless, packed);
    update_u64(state, size);
    XXH3_128bits_update(state, packed, size);
    free(packed);
    return SFC_OK;
}

int sfc_state_digest(const struct sfc_block_table *table, const Shardfc__V1__RunConfig *config,
                     uint64_t step, char out[SFC_DIGEST_HEX], struct sfc_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL) {
        return sfc_fail(err, SFC_ENOMEM, "out of memory for a digest");
    }
    XXH3_128bits_reset(state);
    static const char tag[] = "shardfc state 2";
    XXH3_128bits_update(state, tag, sizeof tag);
    update_u64(state, step);
    int code = update_config(state, config, err);
    for (int kind = 0; kind < SFC_CHECKPOINT_KINDS && code == SFC_OK; kind++) {
        update_u64(state, table->count[kind]);
        for (uint64_t b = 0; b < table->count[kind]; b++) {
            update_u64(state, table->entry[kind][b].digest.low64);
            update_u64(state, table->entry[kind][b].digest.high64);
        }
    }
    if (code == SFC_OK) {
        sfc_digest_hex(XXH3_128bits_digest(state), out);
    }
    XXH3_freeState(state);
    return code;
}
