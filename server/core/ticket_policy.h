/* Who should get a ticket: slow workers fewer, a straggler's again to another. Workers ask when
 * they are free, so a slow one gets fewer anyway; what is left is the end of a step.
 *
 * - A worker waits instead of taking a free micro-batch when the others will have done all that is
 *   left before it would be done with one (within three quarters of its time: equal workers never
 *   wait for each other).
 * - When nothing is free, a worker gets a micro-batch again whose holder is late (pace.h), or is
 *   known to need twice as long for what remains as this worker for the whole.
 * - A data ticket that is late is given again. A worker that is late with one gets no other while
 *   somebody else asks.
 *
 * Whoever is late with what it holds counts as slow as that until it answers: it may stand still.
 * What somebody waits for may fail: everything is decided again at every event and tick, and
 * whoever is overdue counts less and less. Results never depend on any of this. */
#ifndef SFC_CORE_TICKET_POLICY_H
#define SFC_CORE_TICKET_POLICY_H

#include "server/core/tickets.h"

#define SFC_POLICY_GRAIN_MS 10.0 /* a gain below it is not worth a decision */

/* What the tickets look like to the calls that wait now; made anew for every event. */
struct sfc_ticket_survey {
    uint64_t now_ms;
    bool computing;       /* grants may be given */
    uint32_t free;        /* micro-batches of the open step */
    double longest_ms;    /* until one that may be given again is done; INFINITY: it is late */
    bool data_free;       /* data tickets are */
    bool data_late;       /* some may be given again */
    uint32_t data_askers; /* calls of workers that are not late with a data ticket */
};

/* Then every call that waits for a ticket is counted, with its worker's place. */
void sfc_ticket_survey(struct sfc_tickets *t, uint64_t now_ms, bool computing,
                       struct sfc_ticket_survey *survey);
void sfc_ticket_survey_call(struct sfc_tickets *t, struct sfc_ticket_survey *survey, uint32_t place,
                            bool data);

/* A ticket for a worker whose call was counted; false: none now. */
bool sfc_ticket_policy_grant(struct sfc_tickets *t, struct sfc_ticket_survey *survey,
                             uint64_t worker, uint32_t place, uint64_t *step, uint32_t *j,
                             struct sfc_attempt *attempt);
bool sfc_ticket_policy_data(struct sfc_tickets *t, struct sfc_ticket_survey *survey,
                            uint64_t worker, uint32_t place, uint64_t *step, uint32_t *j);

#endif
