/* What every program does first, and last. */
#ifndef SFC_BASE_PROCESS_H
#define SFC_BASE_PROCESS_H

#include <stdint.h>

/* Call first in main, before any thread starts.
 * - Keeps freed memory: malloc neither maps large blocks one by one nor gives them back, because
 * fresh pages cost far more than the work on them (messages of some MiB come and go all the time).
 * - Gives malloc one arena: with one for each of many threads, what is free in one of them does not
 * serve another, and a process grows for hundreds of steps. Each thread's own cache keeps the lock
 * rare.
 * - Makes OpenMP threads sleep at barriers instead of spinning (OMP_WAIT_POLICY=passive). libgomp
 * reads the variable when it is loaded, before main; so where it isn't set, the program is executed
 * again with it, once (same process id, same arguments). A value set by the user is respected.
 * - Ignores SIGPIPE: a peer that closes its end is an error of the write, not a signal.
 * - Opens as many files as the system allows (the hard limit): each connection is one.
 * Failures leave the process as it was; they cost speed only. */
void sfc_process_tune(char **argv);

/* Of a program that reads its configuration again on SIGHUP: call before sfc_process_tune. From
 * then on such a signal waits, also through the second execution, instead of ending the process;
 * whoever handles it takes it later, also with sigwait. sfc_process_take_hangup lets it through to
 * a handler on the calling thread. */
void sfc_process_hold_hangup(void);
void sfc_process_take_hangup(void);

/* Call last in main: writes out what stdout holds and returns the exit code. A program that was to
 * end well (code 0) and whose output did not all arrive (full disk, a reader that went away) says
 * so on stderr and ends with 1. */
int sfc_process_end(const char *program, int code);

/* Memory of this process in bytes: its proportional set size, in which a page of a library that n
 * processes share counts for an n-th, so that the sum over processes is what the machine holds. 0
 * where the system doesn't tell. */
uint64_t sfc_process_memory(void);

/* Memory of this process that is there now, in bytes, shared pages in full: cheap enough to be
 * asked all the time. 0 where the system doesn't tell. */
uint64_t sfc_process_resident(void);

/* What the machine can give to programs without swapping, in bytes (MemAvailable of /proc/meminfo);
 * 0 where the system doesn't tell. */
uint64_t sfc_memory_available(void);

#endif
