/* Every bound on what a peer may send. docs/PROTOCOL.md lists them for users. Where a run's shape
 * gives a tighter bound (bytes of a feature tensor), the receiver uses that one. */
#ifndef SFC_PROTO_LIMITS_H
#define SFC_PROTO_LIMITS_H

#define SFC_PROTOCOL_VERSION 1u

/* messages, in bytes */
#define SFC_LIMIT_MESSAGE      (256u << 20) /* anything, head and tensor together */
#define SFC_LIMIT_HEAD         (64u << 20)  /* the part without the tensor */
#define SFC_LIMIT_CONTROL      (16u << 20)  /* a control request: configurations, maps */
#define SFC_LIMIT_SMALL        (64u << 10)  /* heartbeats, tickets and the like */
#define SFC_LIMIT_METADATA     (16u << 10)  /* all HTTP/2 headers of a call */
#define SFC_LIMIT_SERVER_BYTES (2ull << 30) /* requests held by one server at a time, at most */

/* calls */
#define SFC_LIMIT_PENDING     4096u    /* of one method, unless its table entry says less */
#define SFC_LIMIT_STREAMS     2048     /* at a time on one connection */
#define SFC_LIMIT_RECEIVE_MS  60000u   /* from the start of a call to the end of its request */
#define SFC_LIMIT_DEADLINE_MS 3600000u /* of one try */
#define SFC_LIMIT_RETRIES     1000u

/* a step that one shard reads from another's log */
#define SFC_LIMIT_STEP_PIECE (16u << 20) /* bytes of features in one answer of ReadStep */

/* text, in bytes */
#define SFC_LIMIT_NAME       128u /* names of runs, workers, counters, segments */
#define SFC_LIMIT_ADDRESS    256u
#define SFC_LIMIT_ERROR_TEXT 512u /* message of a failed call */

/* tensors */
#define SFC_LIMIT_RANK 8u

/* a run */
#define SFC_LIMIT_CLASSES       (1ull << 40)
#define SFC_LIMIT_DIM           8192u
#define SFC_LIMIT_BLOCKS        (1ull << 22) /* class blocks; also dense blocks */
#define SFC_LIMIT_BLOCK_SIZE    (1u << 20)   /* classes per block */
#define SFC_LIMIT_DENSE_BLOCK   (1u << 24)   /* floats per dense block */
#define SFC_LIMIT_DENSE_SIZE    (1ull << 32) /* floats of a backbone */
#define SFC_LIMIT_SEGMENTS      16384u
#define SFC_LIMIT_BATCH         (1u << 20) /* rows of the global batch */
#define SFC_LIMIT_MICRO_BATCHES 4096u      /* per step */
#define SFC_LIMIT_MIRRORS       8u         /* of a shard */
#define SFC_LIMIT_GRACE_S       86400u
#define SFC_LIMIT_DURABLE_EVERY 1000u /* records of so many steps are kept in memory */
#define SFC_LIMIT_RETURNS       256u  /* to earlier steps that are told apart */
#define SFC_LIMIT_LR_CHANGES    1000u /* of the learning rate, in one run */
#define SFC_LIMIT_STEPS         (1ull << 40)
#define SFC_LIMIT_DENSE_STEPS   (1u << 24) /* of momentum mode dense: kernels/lag.h */
#define SFC_LIMIT_BETA1         0.9999
#define SFC_LIMIT_BETA2         0.99999
#define SFC_LIMIT_EPSILON_MIN   1e-12 /* with adamw */
#define SFC_LIMIT_EPSILON_MAX   1.0
#define SFC_LIMIT_GROWTHS       64u /* of a run */
#define SFC_LIMIT_SAMPLES       (1ull << 48)
#define SFC_LIMIT_SIDE          4096u /* width and height of an image */
#define SFC_LIMIT_CHANNELS      4u
#define SFC_LIMIT_HOT_CLASSES   (1ull << 20) /* of synthetic data */
#define SFC_LIMIT_SCALE         80.0         /* the 256-bit sums of exponentials hold up to here */

/* members */
#define SFC_LIMIT_SHARDS   256u /* known to a scheduler */
#define SFC_LIMIT_WORKERS  1024u
#define SFC_LIMIT_LANES    4096u   /* of one worker */
#define SFC_LIMIT_COUNTERS 64u     /* in one heartbeat; more are ignored */
#define SFC_LIMIT_HISTORY  100000u /* points in one reply */
#define SFC_LIMIT_EVENTS   10000u  /* events in one reply */

#define SFC_LIMIT_TRACE_STEPS 100u /* of one trace */

#endif
