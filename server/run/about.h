/* What a daemon says about itself (About), for people who look for what is wrong. */
#ifndef SFC_RUN_ABOUT_H
#define SFC_RUN_ABOUT_H

#include "proto/rpc.h"

/* Of the system's clock, microseconds since 1970. */
uint64_t sfc_about_clock_us(void);
/* Ends the call. state: the folder, or the address, of the daemon's state; tls: the folder of its
 * certificate; NULL: it has none. */
void sfc_about_answer(struct sfc_rpc_call *call, const char *state, const char *tls);

#endif
