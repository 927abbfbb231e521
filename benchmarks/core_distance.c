// How far apart cores 0 and 1 are: gcc -O2 -pthread benchmarks/core_distance.c && ./a.out
//
// Hands a cache line back and forth, and reads what the other core has just written.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { kTrips = 20000, kWarm = 1000, kBytes = 512 << 10, kLine = 64, kTries = 5 };

static _Alignas(128) atomic_long there;
static _Alignas(128) atomic_long back;
static char* shared;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void stay_on(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void* answer(void* unused) {
  stay_on(1);
  for (long i = 1; i <= kTrips; i++) {
    while (atomic_load(&there) != i) {
    }
    atomic_store(&back, i);
  }
  return unused;
}

static void* write_all(void* unused) {
  stay_on(1);
  for (int i = 0; i < kBytes; i += kLine) shared[i]++;
  return unused;
}

int main(void) {
  stay_on(0);
  pthread_t other;
  double start = 0;
  pthread_create(&other, NULL, answer, NULL);
  for (long i = 1; i <= kTrips; i++) {
    if (i == kWarm) start = now();
    atomic_store(&there, i);
    while (atomic_load(&back) != i) {
    }
  }
  const double trip = (now() - start) / (kTrips - kWarm);
  pthread_join(other, NULL);

  shared = calloc(kBytes, 1);
  double best = 1e18;
  for (int k = 0; k < kTries; k++) {
    pthread_create(&other, NULL, write_all, NULL);
    pthread_join(other, NULL);
    long total = 0;
    start = now();
    for (int i = 0; i < kBytes; i += kLine) total += shared[i];
    const double took = now() - start;
    if (total > 0 && took < best) best = took;
  }
  printf("round trip %.0f ns, %.0f GB/s from the other core's cache\n", trip, kBytes / best);
  return 0;
}
