/**
 * Limits on requests and bytes a second, shared by all throttle nodes of a group. The rules are
 * those of QEMU's throttle groups (docs/throttle.txt): leaky buckets.
 *
 * Each limited quantity (requests or bytes; reads, writes or both) is a bucket that drains at the
 * average rate and into which each request pours what it is worth. A request may start while no
 * bucket that it pours into is fuller than its capacity:
 *
 *   without burst:  a tenth of a second of the average
 *   with burst:     burst rate times burst length; with a burst longer than a second the burst rate
 *                   itself is limited by a second bucket, of a tenth of a second
 *
 * Requests of one direction start in the order of their arrival at each member; members take turns.
 * A flush is not limited. A member in a drained section lets all its requests go at once; they are
 * poured in all the same, so that the others pay for them.
 *
 * @module
 */

import { assert } from "../assert.ts";
import type { Clock } from "../clock.ts";
import { BlockError } from "../errors.ts";

/** The rate of one quantity, a second. */
export interface ThrottleRate {
  /** What is allowed in the long run. */
  average: number;
  /** The rate during bursts: at least the average. */
  burst?: number;
  /** How long a burst lasts, 1 unless given. */
  burstSeconds?: number;
}

/** Limits, each optional. A total may not stand beside a limit on reads or writes alone. */
export interface ThrottleLimits {
  /** Bytes read and written. */
  bytesTotal?: ThrottleRate;
  /** Bytes read. */
  bytesRead?: ThrottleRate;
  /** Bytes written, zeroed or discarded. */
  bytesWrite?: ThrottleRate;
  /** Requests of either direction. */
  requestsTotal?: ThrottleRate;
  /** Reads. */
  requestsRead?: ThrottleRate;
  /** Writes, write-zeroes and discards. */
  requestsWrite?: ThrottleRate;
  /** A larger request counts as several of this size. */
  requestBytes?: number;
}

/** Which way a request moves data. Zeroes and discards are writes. */
export type ThrottleDirection = "read" | "write";

/** As in QEMU: beyond, products with a burst's length lose precision. */
const RATE_MAX = 1e15;

/** A member: one throttle node. Made by `join`. */
export class ThrottleMember {
  /** Requests that wait, by direction, the oldest first. */
  readonly queues: Record<ThrottleDirection, PendingRequest[]> = { read: [], write: [] };
  /** In a drained section. */
  isReleased = false;
}

/** A request that waits for its turn. */
export interface PendingRequest {
  /** What it moves, zeroes or discards. */
  bytes: number;
  /** Starts it; called once, never throws. */
  start: () => void;
}

/** The limits of a group, how much of them is used up, and whose turn it is. */
export class ThrottleGroup {
  /** As descriptions of nodes show it. */
  readonly name: string;
  readonly #clock: Clock;
  #requestBytes = 0;
  #buckets: Record<ThrottleDirection, { requests: Bucket[]; bytes: Bucket[] }> = {
    read: { requests: [], bytes: [] },
    write: { requests: [], bytes: [] },
  };
  readonly #members: ThrottleMember[] = [];
  /** Index of the member whose turn it is. */
  readonly #turns: Record<ThrottleDirection, number> = { read: 0, write: 0 };
  readonly #timers: Record<ThrottleDirection, (() => void) | null> = { read: null, write: null };

  /** Throws a BlockError (EINVAL) on limits that make no sense. */
  constructor(name: string, limits: ThrottleLimits, clock: Clock) {
    this.name = name;
    this.#clock = clock;
    this.setLimits(limits);
  }

  /** How many nodes share the limits. */
  get memberCount(): number {
    return this.#members.length;
  }

  /**
   * Other limits from now on; what was used of the old ones is forgotten. Throws a BlockError
   * (EINVAL) and changes nothing on limits that make no sense.
   */
  setLimits(limits: ThrottleLimits): void {
    checkLimits(limits);
    this.#requestBytes = limits.requestBytes ?? 0;
    const bucketsOf = (...rates: (ThrottleRate | undefined)[]): Bucket[] => {
      return rates.filter((rate) => rate !== undefined).map((rate) =>
        new Bucket(rate, this.#clock.now())
      );
    };
    const requests = bucketsOf(limits.requestsTotal);
    const bytes = bucketsOf(limits.bytesTotal);
    this.#buckets = {
      read: {
        requests: [...requests, ...bucketsOf(limits.requestsRead)],
        bytes: [...bytes, ...bucketsOf(limits.bytesRead)],
      },
      write: {
        requests: [...requests, ...bucketsOf(limits.requestsWrite)],
        bytes: [...bytes, ...bucketsOf(limits.bytesWrite)],
      },
    };
    for (const direction of ["read", "write"] as const) this.#pump(direction);
  }

  /** A new member, without requests. */
  join(): ThrottleMember {
    const member = new ThrottleMember();
    this.#members.push(member);
    return member;
  }

  /** Nothing of the member is pending. */
  leave(member: ThrottleMember): void {
    const index = this.#members.indexOf(member);
    assert(index >= 0, "the member is not of this group");
    assert(member.queues.read.length + member.queues.write.length === 0, "requests are pending");
    this.#members.splice(index, 1);
  }

  /** Whether a request of the member may start now; it then counts. Else it has to `wait`. */
  tryStart(member: ThrottleMember, direction: ThrottleDirection, bytes: number): boolean {
    if (!member.isReleased && (this.#hasPending(direction) || this.#waitMs(direction) > 0)) {
      return false;
    }
    this.#pour(direction, bytes);
    return true;
  }

  /** Calls `start` when the request may start. */
  wait(
    member: ThrottleMember,
    direction: ThrottleDirection,
    request: { bytes: number; start: () => void },
  ): void {
    const isFirst = !this.#hasPending(direction);
    member.queues[direction].push(request);
    if (isFirst) this.#pump(direction);
  }

  /** Starts all that the member holds back, and what it gets until `restrict`. */
  release(member: ThrottleMember): void {
    member.isReleased = true;
    for (const direction of ["read", "write"] as const) {
      for (const request of member.queues[direction].splice(0)) {
        this.#pour(direction, request.bytes);
        request.start();
      }
      this.#pump(direction);
    }
  }

  /** The limits hold for the member again. */
  restrict(member: ThrottleMember): void {
    member.isReleased = false;
  }

  /** Starts what may start; sets the timer for the rest. */
  #pump(direction: ThrottleDirection): void {
    for (;;) {
      // A request that is started may have come here itself: there is one timer at most.
      this.#timers[direction]?.();
      this.#timers[direction] = null;
      const member = this.#nextMember(direction);
      if (member === null) return;
      const waitMs = this.#waitMs(direction);
      if (waitMs > 0) {
        this.#timers[direction] = this.#clock.after(Math.ceil(waitMs), () => {
          this.#timers[direction] = null;
          this.#pump(direction);
        });
        return;
      }
      this.#turns[direction] = this.#members.indexOf(member) + 1;
      const request = member.queues[direction].shift();
      assert(request !== undefined, "a member without requests has no turn");
      this.#pour(direction, request.bytes);
      request.start();
    }
  }

  #hasPending(direction: ThrottleDirection): boolean {
    for (const { queues } of this.#members) {
      if (queues[direction].length > 0) return true;
    }
    return false;
  }

  /** The member whose turn it is among those that have pending requests. */
  #nextMember(direction: ThrottleDirection): ThrottleMember | null {
    const count = this.#members.length;
    for (let step = 0; step < count; step++) {
      const member = this.#members[(this.#turns[direction] + step) % count];
      if (member !== undefined && member.queues[direction].length > 0) return member;
    }
    return null;
  }

  #waitMs(direction: ThrottleDirection): number {
    const nowMs = this.#clock.now();
    const { requests, bytes } = this.#buckets[direction];
    let waitMs = 0;
    for (const bucket of requests) waitMs = Math.max(waitMs, bucket.waitMs(nowMs));
    for (const bucket of bytes) waitMs = Math.max(waitMs, bucket.waitMs(nowMs));
    return waitMs;
  }

  #pour(direction: ThrottleDirection, byteCount: number): void {
    const { requests, bytes } = this.#buckets[direction];
    const unit = this.#requestBytes;
    const count = unit > 0 && byteCount > unit ? byteCount / unit : 1;
    for (const bucket of requests) bucket.pour(count);
    for (const bucket of bytes) bucket.pour(byteCount);
  }
}

/** See the module's head. */
class Bucket {
  readonly #averagePerMs: number;
  readonly #burstPerMs: number;
  readonly #capacity: number;
  /** Of the bucket that limits the burst rate; Infinity where bursts are short or none. */
  readonly #burstCapacity: number;
  #level = 0;
  #burstLevel = 0;
  #leakedMs: number;

  constructor(rate: ThrottleRate, nowMs: number) {
    const burst = rate.burst ?? 0;
    const burstSeconds = rate.burstSeconds ?? 1;
    this.#averagePerMs = rate.average / 1000;
    this.#burstPerMs = burst / 1000;
    this.#capacity = burst > 0 ? burst * burstSeconds : rate.average / 10;
    this.#burstCapacity = burst > 0 && burstSeconds > 1 ? burst / 10 : Infinity;
    this.#leakedMs = nowMs;
  }

  pour(amount: number): void {
    this.#level += amount;
    if (this.#burstCapacity < Infinity) this.#burstLevel += amount;
  }

  /** How long until the bucket is no fuller than its capacity. */
  waitMs(nowMs: number): number {
    const passedMs = Math.max(nowMs - this.#leakedMs, 0);
    this.#leakedMs = nowMs;
    this.#level = Math.max(this.#level - passedMs * this.#averagePerMs, 0);
    this.#burstLevel = Math.max(this.#burstLevel - passedMs * this.#burstPerMs, 0);
    if (this.#level > this.#capacity) return (this.#level - this.#capacity) / this.#averagePerMs;
    if (this.#burstLevel > this.#burstCapacity) {
      return (this.#burstLevel - this.#burstCapacity) / this.#burstPerMs;
    }
    return 0;
  }
}

/** The texts follow QEMU's. */
function checkLimits(limits: ThrottleLimits): void {
  const { bytesTotal, bytesRead, bytesWrite, requestsTotal, requestsRead, requestsWrite } = limits;
  if (
    (bytesTotal !== undefined && (bytesRead !== undefined || bytesWrite !== undefined)) ||
    (requestsTotal !== undefined && (requestsRead !== undefined || requestsWrite !== undefined))
  ) {
    throw invalid("total values and read/write values cannot be used at the same time");
  }
  const rates = [bytesTotal, bytesRead, bytesWrite, requestsTotal, requestsRead, requestsWrite];
  for (const rate of rates) {
    if (rate !== undefined) checkRate(rate);
  }
  const { requestBytes } = limits;
  if (requestBytes !== undefined && !(requestBytes >= 1 && requestBytes <= RATE_MAX)) {
    throw invalid(`a request size must be between 1 and ${RATE_MAX}`);
  }
}

function checkRate({ average, burst, burstSeconds }: ThrottleRate): void {
  if (!(average >= 1 && average <= RATE_MAX) || !((burst ?? 1) <= RATE_MAX)) {
    throw invalid(`rates must be between 1 and ${RATE_MAX}`);
  }
  if (burst !== undefined && burst < average) {
    throw invalid("a burst rate cannot be lower than the average");
  }
  if (burstSeconds === undefined) return;
  if (burst === undefined) throw invalid("a burst length requires a burst rate");
  if (!(burstSeconds >= 1 && burst * burstSeconds <= RATE_MAX)) {
    throw invalid("a burst length must be at least one second, and not too long for its rate");
  }
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", `Throttling: ${message}`);
}
