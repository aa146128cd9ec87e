/**
 * The host's end of the samples that harts take of themselves (assembly/hart/sampler.ts).
 *
 * @module
 */

import type { HartLayout } from "../wasm/hart.ts";

/** Where a hart was seen. */
export interface Sample {
  /** U 0, S 1, M 3. */
  priv: number;
  /** Guest addresses: pc, then what calls return to, innermost first. */
  frames: bigint[];
  /** Periods of running that it stands for: 1 unless the hart could not be looked at sooner. */
  weight: number;
}

/** Starts, takes and ends the samples of a machine's harts: one at a time may. */
export class SampleReader {
  readonly #words: Int32Array;
  readonly #view: DataView;
  readonly #layout: HartLayout;
  readonly #rings: number[];

  /** Of the machine with this memory. */
  constructor(buffer: ArrayBufferLike, layout: HartLayout, hartCount: number) {
    this.#words = new Int32Array(buffer);
    this.#view = new DataView(buffer);
    this.#layout = layout;
    this.#rings = Array.from(
      { length: hartCount },
      (_, hartId) => layout.HART_BASE + hartId * layout.HART_STRIDE + layout.HART_SAMPLES,
    );
  }

  /** From now on harts take a sample each time they ran for so long. */
  start(periodTicks: number): void {
    const { SAMPLES_HEAD_WORD, SAMPLES_TAIL_WORD, SAMPLES_LOST_WORD } = this.#layout;
    for (const ring of this.#rings) {
      Atomics.store(this.#words, (ring + SAMPLES_LOST_WORD) >>> 2, 0);
      const head = Atomics.load(this.#words, (ring + SAMPLES_HEAD_WORD) >>> 2);
      Atomics.store(this.#words, (ring + SAMPLES_TAIL_WORD) >>> 2, head);
    }
    Atomics.store(this.#words, this.#layout.SAMPLE_PERIOD_WORD >>> 2, periodTicks);
  }

  /** Harts take no more. */
  stop(): void {
    Atomics.store(this.#words, this.#layout.SAMPLE_PERIOD_WORD >>> 2, 0);
  }

  /** Takes what came since the last call. */
  *drain(): Generator<Sample> {
    const { SAMPLES_HEAD_WORD, SAMPLES_TAIL_WORD } = this.#layout;
    for (const ring of this.#rings) {
      const head = Atomics.load(this.#words, (ring + SAMPLES_HEAD_WORD) >>> 2);
      const tailIndex = (ring + SAMPLES_TAIL_WORD) >>> 2;
      for (let tail = Atomics.load(this.#words, tailIndex); tail !== head;) {
        yield this.#read(ring, tail);
        tail = (tail + 1) | 0;
        Atomics.store(this.#words, tailIndex, tail);
      }
    }
  }

  /** Periods of which there are no samples, since nobody took them in time. */
  get lost(): number {
    return this.#rings.reduce(
      (sum, ring) => sum + this.#view.getUint32(ring + this.#layout.SAMPLES_LOST_WORD, true),
      0,
    );
  }

  #read(ring: number, position: number): Sample {
    const layout = this.#layout;
    const slot = (position & (layout.SAMPLES_SLOTS - 1)) * layout.SAMPLE_BYTES;
    const sample = ring + layout.SAMPLES_RING + slot;
    const count = this.#view.getUint32(sample + layout.SAMPLE_FRAME_COUNT, true);
    return {
      priv: this.#view.getUint32(sample + layout.SAMPLE_PRIV, true),
      weight: this.#view.getUint32(sample + layout.SAMPLE_WEIGHT, true),
      frames: Array.from(
        { length: count },
        (_, index) => this.#view.getBigUint64(sample + layout.SAMPLE_FRAMES + 8 * index, true),
      ),
    };
  }
}
