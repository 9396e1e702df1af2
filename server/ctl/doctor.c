#include "server/ctl/doctor.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "proto/base/text.h"
#include "server/ctl/show.h"

enum { COLUMNS = 80, LEVEL = 8, WHAT = 11, TEXT = 2 + LEVEL + 1 + WHAT + 1 };

static const char *const level_names[] = {"ok", "note", "warning", "problem"};

void sfc_findings_free(struct sfc_findings *findings)
{
    free(findings->items);
    *findings = (struct sfc_findings){0};
}

static struct sfc_finding *room(struct sfc_findings *f)
{
    struct sfc_finding *more = reallocarray(f->items, f->count + 1, sizeof *more);
    if (more == NULL) {
        f->failed = true;
        return &f->spare;
    }
    f->items = more;
    return &f->items[f->count++];
}

void sfc_finding_add(struct sfc_findings *findings, enum sfc_finding_level level, const char *where,
                     const char *what, const char *format, ...)
{
    struct sfc_finding *one = room(findings);
    va_list arguments;
    one->level = level;
    one->cure[0] = '\0';
    int size = snprintf(one->where, sizeof one->where, "%s", where);
    sfc_mark_cut(one->where, sizeof one->where, size);
    sfc_clean_text(one->where, false);
    snprintf(one->what, sizeof one->what, "%s", what);
    va_start(arguments, format);
    size = vsnprintf(one->found, sizeof one->found, format, arguments);
    sfc_mark_cut(one->found, sizeof one->found, size);
    sfc_clean_text(one->found, false); /* words that "%.60s" has cut */
    va_end(arguments);
}

void sfc_finding_cure(struct sfc_findings *findings, const char *format, ...)
{
    va_list arguments;
    if (findings->count == 0) {
        return;
    }
    struct sfc_finding *last = &findings->items[findings->count - 1];
    va_start(arguments, format);
    int size = vsnprintf(last->cure, sizeof last->cure, format, arguments);
    sfc_mark_cut(last->cure, sizeof last->cure, size);
    sfc_clean_text(last->cure, false);
    va_end(arguments);
}

size_t sfc_findings_of(const struct sfc_findings *findings, enum sfc_finding_level level)
{
    size_t count = 0;
    for (size_t i = 0; i < findings->count; i++) {
        count += findings->items[i].level == level;
    }
    return count;
}

void sfc_findings_print(const struct sfc_findings *findings, FILE *out)
{
    const char *where = "";
    for (size_t i = 0; i < findings->count; i++) {
        const struct sfc_finding *f = &findings->items[i];
        if (strcmp(where, f->where) != 0) {
            fprintf(out, "%s%s\n", i > 0 ? "\n" : "", f->where);
            where = f->where;
        }
        fprintf(out, "  %-*s %-*s ", LEVEL, level_names[f->level], WHAT, f->what);
        sfc_show_wrapped(out, COLUMNS, TEXT, TEXT, f->found);
        if (f->cure[0] != '\0') {
            char cure[sizeof f->cure + 4];
            snprintf(cure, sizeof cure, "-> %s", f->cure);
            fprintf(out, "%*s", TEXT, "");
            sfc_show_wrapped(out, COLUMNS, TEXT, TEXT, cure);
        }
    }
}

json_t *sfc_findings_json(const struct sfc_findings *findings)
{
    json_t *list = json_array();
    for (size_t i = 0; i < findings->count; i++) {
        const struct sfc_finding *f = &findings->items[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s}", "level",
                                              level_names[f->level], "where", f->where, "what",
                                              f->what, "found", f->found, "cure", f->cure));
    }
    return json_pack("{s:I, s:I, s:o}", "problems",
                     (json_int_t)sfc_findings_of(findings, SFC_FINDING_PROBLEM), "warnings",
                     (json_int_t)sfc_findings_of(findings, SFC_FINDING_WARNING), "findings", list);
}
