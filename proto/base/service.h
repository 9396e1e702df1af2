/* What a daemon tells the service manager (systemd) and the journal. Where none of them started it,
 * or listens, every function does nothing. */
#ifndef SFC_BASE_SERVICE_H
#define SFC_BASE_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/base/status.h"

/* How a daemon is, as it says itself from time to time. */
struct sfc_service_state {
    bool ready;    /* it answers: told once, when it is so for the first time */
    bool working;  /* false: what does the work is stuck, and the watchdog is not fed */
    uint64_t run;  /* 0: none */
    uint64_t step; /* of the run */
    char text[200];
};

/* Call after the options are parsed, before the first message: where stderr is the journal,
 * messages go there as entries with fields (PRIORITY, SFC_RUN, SFC_STEP) instead of lines. */
void sfc_service_begin(void);

/* Messages from now on are of this run (0: none), at this step. Any thread. */
void sfc_service_at(uint64_t run, uint64_t step);

/* From one thread: READY=1 the first time that it is ready, STATUS= when the text is another,
 * WATCHDOG=1 if it works; and sfc_service_at. */
void sfc_service_tell(const struct sfc_service_state *state);

/* How often sfc_service_tell wants to be called, in ms; 0: nobody listens. */
uint64_t sfc_service_interval(void);
/* How long work that other threads do may take before `working` is false, in ms: the watchdog's
 * period; 0: there is none. */
uint64_t sfc_service_patience(void);

void sfc_service_reloading(void); /* then sfc_service_reloaded */
void sfc_service_reloaded(void);
void sfc_service_stopping(void);
/* A start or an end that goes on may take so much longer from now on. */
void sfc_service_extend(uint64_t ms);

#endif
