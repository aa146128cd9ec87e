/**
 * A lock over one word of the shared memory: 0 free, 1 held, 2 held and somebody may be asleep on
 * it. Taken only for a few instructions that neither wait nor trap, so its holder always gets on.
 */

const FREE: i32 = 0;
const HELD: i32 = 1;
const CONTENDED: i32 = 2;
const SPINS: u32 = 100;
/** A waiter looks again after so long even if nobody notified it. */
const LOCK_WAIT_NS: i64 = 1_000_000;

export function acquireLock(word: usize): void {
  for (let spin: u32 = 0; spin < SPINS; spin++) {
    if (atomic.cmpxchg<i32>(word, FREE, HELD) === FREE) return;
  }
  while (atomic.xchg<i32>(word, CONTENDED) !== FREE) {
    atomic.wait<i32>(word, CONTENDED, LOCK_WAIT_NS);
  }
}

export function releaseLock(word: usize): void {
  if (atomic.xchg<i32>(word, FREE) === CONTENDED) atomic.notify(word, 1);
}
