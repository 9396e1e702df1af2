"""A foreign session with a backbone of any size, for benchmarks: it sends the same gradient in every step and never
pulls the parameters, so that little but the servers' work is timed."""
import numpy as np

from cluster import pb
from test_head_session import Session, xxh3_64


def segments(parameters):
    return [pb.DenseSegment(name="parameters", shape=[parameters], init_std=0.01)]


class DenseSession(Session):
    def __init__(self, cluster):
        super().__init__(cluster)
        owner, size = self.reply.map.dense_owner, self.config.dense_block_size
        total = self.config.segments[0].shape[0]
        random = np.random.default_rng(1)
        blocks = [random.standard_normal(min(size, total - b * size), dtype=np.float32) * np.float32(1e-4)
                  for b in range(len(owner))]
        self.digests = [xxh3_64(b.tobytes()) for b in blocks]
        self.pushes = []  # (shard, request), complete but for step and attempt
        for k, shard in enumerate(self.shards):
            payload = b"".join(b.tobytes() for b, o in zip(blocks, owner) if o == k)
            self.pushes.append((shard, pb.PushDenseRequest(
                run_id=self.reply.run_id, attempt=self.reply.attempt, map_version=self.reply.map.version,
                payload_digest=xxh3_64(payload), payload=payload,
                payload_type=pb.TensorType(dtype=pb.DTYPE_F32, shape=[len(payload) // 4]))))
        rows = self.config.global_batch
        self.features = random.standard_normal((rows, self.config.dim)).astype(np.float32)
        self.random = random

    def done(self, j):
        calls = []
        for shard, request in self.pushes:
            request.step, request.micro_batch = self.step, j
            calls.append(shard.PushDense.future(request, timeout=120))
        for call in calls:
            call.result()
        reply = self.scheduler.Done(pb.DoneRequest(
            run_id=self.reply.run_id, session=self.reply.session, step=self.step, micro_batch=j,
            attempt=self.reply.attempt, head_digest=self.digest, loss_sum=self.loss, dense_digests=self.digests),
            timeout=120)
        assert reply.accepted

    def steps(self, count):
        for _ in range(count):
            labels = self.random.integers(0, self.config.classes, self.config.global_batch).astype(np.uint64)
            self.train_step(self.features, labels)
