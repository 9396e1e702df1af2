/* The one call that ShardFC makes into OpenMP, which oneDNN runs on. Declared here because only the
 * runtime is linked: the compiler's OpenMP support (omp.h, -fopenmp) is not used, and clang need
 * not have it. */
#ifndef SFC_BASE_OPENMP_H
#define SFC_BASE_OPENMP_H

/* Threads that oneDNN uses when it is called from the calling thread. */
void omp_set_num_threads(int threads);

#endif
