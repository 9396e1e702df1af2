#include "proto/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void append(struct sfc_metrics *m, const char *text, size_t size)
{
    if (!m->failed && m->size + size + 1 > m->room) {
        size_t room = (m->size + size + 1) * 2;
        char *larger = realloc(m->text, room);
        m->failed = larger == NULL;
        m->text = larger != NULL ? larger : m->text;
        m->room = larger != NULL ? room : m->room;
    }
    if (m->failed) {
        return;
    }
    memcpy(m->text + m->size, text, size);
    m->size += size;
    m->text[m->size] = '\0';
}

static void append_text(struct sfc_metrics *m, const char *text)
{
    append(m, text, strlen(text));
}

static void append_escaped(struct sfc_metrics *m, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            append_text(m, "\\n");
        } else if (*text == '"' || *text == '\\') {
            append(m, (const char[2]){'\\', *text}, 2);
        } else {
            append(m, text, 1);
        }
    }
}

static void append_number(struct sfc_metrics *m, double value)
{
    char text[40];
    if (isnan(value)) {
        append_text(m, "NaN");
    } else if (isinf(value)) {
        append_text(m, value > 0 ? "+Inf" : "-Inf");
    } else {
        snprintf(text, sizeof text, "%.17g", value);
        append_text(m, text);
    }
}

void sfc_metrics_family(struct sfc_metrics *m, const char *name, const char *type, const char *help)
{
    const char *const words[] = {"# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        append_text(m, words[i]);
    }
}

static const char *append_labels(struct sfc_metrics *m, const char *before, va_list labels)
{
    const char *label;
    while ((label = va_arg(labels, const char *)) != NULL) {
        append_text(m, before);
        append_text(m, label);
        append_text(m, "=\"");
        append_escaped(m, va_arg(labels, const char *));
        append_text(m, "\"");
        before = ",";
    }
    return before;
}

static void append_value(struct sfc_metrics *m, const char *before, double value)
{
    append_text(m, before[0] == ',' ? "} " : " ");
    append_number(m, value);
    append_text(m, "\n");
}

void sfc_metrics_sample(struct sfc_metrics *m, const char *name, double value, ...)
{
    va_list labels;
    append_text(m, name);
    va_start(labels, value);
    append_value(m, append_labels(m, "{", labels), value);
    va_end(labels);
}

char *sfc_metrics_take(struct sfc_metrics *m)
{
    char *text = m->text;
    if (m->failed) {
        free(text);
        text = NULL;
    }
    *m = (struct sfc_metrics){0};
    return text;
}

/* "NAMEsuffix{LABELS} value"; le NULL: without that label. */
static void histogram_line(struct sfc_metrics *m, const char *name, const char *suffix,
                           const char *le, double value, va_list labels)
{
    va_list again;
    append_text(m, name);
    append_text(m, suffix);
    va_copy(again, labels);
    const char *before = append_labels(m, "{", again);
    va_end(again);
    if (le != NULL) {
        append_text(m, before);
        append_text(m, "le=\"");
        append_text(m, le);
        append_text(m, "\"");
        before = ",";
    }
    append_value(m, before, value);
}

void sfc_metrics_histogram(struct sfc_metrics *m, const char *name, const struct sfc_histogram *h,
                           ...)
{
    char bound[32];
    uint64_t below = 0;
    va_list labels;
    va_start(labels, h);
    for (size_t i = 0; i < SFC_HISTOGRAM_BOUNDS; i++) {
        below += h->counts[i];
        snprintf(bound, sizeof bound, "%g", sfc_histogram_bounds[i]);
        histogram_line(m, name, "_bucket", bound, (double)below, labels);
    }
    histogram_line(m, name, "_bucket", "+Inf", (double)h->all, labels);
    histogram_line(m, name, "_sum", NULL, h->sum, labels);
    histogram_line(m, name, "_count", NULL, (double)h->all, labels);
    va_end(labels);
}
