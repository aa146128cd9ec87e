/**
 * A worker that rings the doorbell as a hart does, and waits for the answer to each ring.
 *
 * @module
 */

/// <reference lib="deno.worker" />

/** What the worker is told. */
interface RingingOrder {
  buffer: SharedArrayBuffer;
  count: number;
  bit: number;
  /** Byte offsets: doorbell, wake, sleeping, what was rung, what was answered. */
  words: [number, number, number, number, number];
}

const LOST_AFTER_MS = 20_000;

self.onmessage = ({ data }: MessageEvent<RingingOrder>) => {
  self.postMessage(ringAll(data));
};

function ringAll({ buffer, count, bit, words: offsets }: RingingOrder): string {
  const words = new Int32Array(buffer);
  const [doorbell, wake, sleeping, asked, answered] = offsets.map((offset) => offset >>> 2) as [
    number,
    number,
    number,
    number,
    number,
  ];
  for (let index = 1; index <= count; index++) {
    Atomics.store(words, asked, index);
    Atomics.or(words, doorbell, bit);
    if (Atomics.load(words, sleeping) !== 0) {
      Atomics.add(words, wake, 1);
      Atomics.notify(words, wake);
    }
    for (let seen = Atomics.load(words, answered); seen !== index;) {
      if (Atomics.wait(words, answered, seen, LOST_AFTER_MS) === "timed-out") {
        return `ring ${index} was lost`;
      }
      seen = Atomics.load(words, answered);
    }
    // Now and then long enough for the other side to fall asleep.
    if (index % 7 === 0) Atomics.wait(words, answered, index, 1);
  }
  return "every ring was answered";
}
