/* Finds out what server/ctl/doctor.h judges: of this host from the system's files, and by short
 * measurements. What can't be found out stays as it is when nothing is known. */
#ifndef SFC_CTL_DOCTOR_PROBE_H
#define SFC_CTL_DOCTOR_PROBE_H

#include "server/ctl/doctor.h"

void sfc_probe_host(struct sfc_host_facts *out);
/* Writes and flushes at most 32 MB there in about two seconds, in a file without a name. folder is
 * borrowed. */
void sfc_probe_disk(const char *folder, struct sfc_disk_facts *out);
/* Whether one could listen at "HOST:PORT", which is borrowed. */
void sfc_probe_port(const char *address, struct sfc_port_facts *out);
/* Both borrowed. listen: "HOST:PORT" of a server with this certificate, NULL: not said. host: a
 * buffer of SFC_HOST_MAX for its host. */
void sfc_probe_certificate(const char *folder, const char *listen, char *host,
                           struct sfc_certificate_facts *out);

#endif
