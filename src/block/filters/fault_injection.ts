/**
 * A filter that makes requests fail, wait, or both, by rules. What a rule doesn't name passes.
 *
 * Rules are looked at in their order; the first that matches a request and is not used up decides.
 * A rule lets `skipCount` matching requests pass first and acts `count` times.
 *
 * @module
 */

import { type Clock, systemClock } from "../clock.ts";
import type { BlockEdge } from "../edge.ts";
import { BlockError, type BlockErrorCode } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import type { BlockStatus, ByteRange, MaybePromise } from "../types.ts";

/** What a rule can match. */
export type FaultOperation =
  | "read"
  | "write"
  | "writeZeroes"
  | "discard"
  | "flush"
  | "blockStatus";

/** A rule. */
export interface FaultRule {
  /** The kinds of requests that it matches. */
  operations: readonly FaultOperation[];
  /** Requests that have a byte of it; all unless given. A flush has every byte. */
  range?: ByteRange;
  /** The request fails so. Without it, it is only held up. */
  error?: BlockErrorCode;
  /** The request waits so long. */
  delayMs?: number;
  /** The request waits for it. Called once a request. */
  gate?: () => Promise<unknown>;
  /**
   * Whether waiting and failing come before the child's work, which then may not happen, or after.
   */
  when?: "before" | "after";
  /** Matching requests that pass before the rule acts. None unless given. */
  skipCount?: number;
  /** How often the rule acts. For ever unless given. */
  count?: number;
}

/** A rule at work. */
export interface ActiveFaultRule {
  /** As it was given. */
  readonly rule: FaultRule;
  /** Requests that matched. */
  readonly matchCount: number;
  /** Requests that it failed or held up. */
  readonly hitCount: number;
}

/** What a fault injection node is made of. */
export interface FaultInjectionNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The node that does the work. */
  file: BlockNode;
  /** The driver's name, "fault-injection" unless given. */
  driver?: string;
  /** In the order in which they are looked at; none unless given. */
  rules?: readonly FaultRule[];
  /** What delays are measured by; the system's unless given. */
  clock?: Clock;
}

/** Driver "fault-injection". */
export class FaultInjectionNode extends BlockNode {
  readonly #file: BlockEdge;
  readonly #clock: Clock;
  #rules: CountedRule[];

  /** Has the size of `file` and follows it. */
  constructor(options: FaultInjectionNodeOptions) {
    const { file } = options;
    super({
      nodeName: options.nodeName,
      driver: options.driver ?? "fault-injection",
      sizeBytes: file.sizeBytes,
      isReadOnly: file.isReadOnly,
      clusterSizeBytes: file.clusterSizeBytes,
      handlesFua: true,
    });
    this.#file = this.addChild("file", "filtered", file);
    this.#clock = options.clock ?? systemClock;
    this.#rules = (options.rules ?? []).map(countedRule);
  }

  /** Adds a rule behind the others. */
  addRule(rule: FaultRule): ActiveFaultRule {
    const counted = countedRule(rule);
    this.#rules.push(counted);
    return counted;
  }

  /** Requests that the rule holds up still wait. */
  removeRule(active: ActiveFaultRule): void {
    this.#rules = this.#rules.filter((rule) => rule !== active);
  }

  /** All rules, also those that are used up. */
  get rules(): readonly ActiveFaultRule[] {
    return this.#rules;
  }

  /** `read` of a rule. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    const rule = this.#match("read", offset, target.length);
    return this.#apply(rule, () => this.#file.node.read(offset, target));
  }

  /** `write` of a rule. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    const rule = this.#match("write", offset, source.length);
    return this.#apply(rule, () => this.#file.node.write(offset, source, flags));
  }

  /** `writeZeroes` of a rule. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    const rule = this.#match("writeZeroes", offset, length);
    return this.#apply(rule, () => this.#file.node.writeZeroes(offset, length, flags));
  }

  /** `discard` of a rule. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    const rule = this.#match("discard", offset, length);
    return this.#apply(rule, () => this.#file.node.discard(offset, length));
  }

  /** `flush` of a rule, whatever its range. */
  protected override doFlush(): MaybePromise<void> {
    const rule = this.#match("flush", 0, Infinity);
    return this.#apply(rule, () => this.#file.node.flush());
  }

  /** `blockStatus` of a rule. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    const rule = this.#match("blockStatus", offset, length);
    return this.#apply(rule, () => this.#file.node.blockStatus(offset, length));
  }

  /** No rule applies. */
  protected override doResize(sizeBytes: number): MaybePromise<void> {
    return this.#file.node.resize(sizeBytes);
  }

  /** How many rules there are, used-up ones included. */
  override details(): Record<string, number> {
    return { ruleCount: this.#rules.length };
  }

  /** The rule that decides a request, counted; undefined where it passes. */
  #match(operation: FaultOperation, offset: number, length: number): FaultRule | undefined {
    for (const counted of this.#rules) {
      const { rule } = counted;
      if (!rule.operations.includes(operation) || !touches(rule.range, offset, length)) continue;
      if (counted.hitCount >= (rule.count ?? Infinity)) continue;
      counted.matchCount++;
      if (counted.matchCount <= (rule.skipCount ?? 0)) continue;
      counted.hitCount++;
      return rule;
    }
    return undefined;
  }

  #apply<T>(rule: FaultRule | undefined, request: () => MaybePromise<T>): MaybePromise<T> {
    if (rule === undefined) return request();
    if (rule.delayMs === undefined && rule.gate === undefined) {
      if (rule.when !== "after") this.#fail(rule);
      const result = request();
      if (result instanceof Promise) {
        return result.then((value) => {
          this.#fail(rule);
          return value;
        });
      }
      this.#fail(rule);
      return result;
    }
    return this.#applyLater(rule, request);
  }

  async #applyLater<T>(rule: FaultRule, request: () => MaybePromise<T>): Promise<T> {
    if (rule.when === "after") {
      const result = await request();
      await this.#wait(rule);
      this.#fail(rule);
      return result;
    }
    await this.#wait(rule);
    this.#fail(rule);
    return await request();
  }

  async #wait({ delayMs, gate }: FaultRule): Promise<void> {
    if (delayMs !== undefined) {
      await new Promise<void>((resolve) => this.#clock.after(delayMs, resolve));
    }
    await gate?.();
  }

  #fail({ error }: FaultRule): void {
    if (error === undefined) return;
    throw new BlockError(error, `Injected fault at node '${this.nodeName}': ${error}`);
  }
}

interface CountedRule extends ActiveFaultRule {
  matchCount: number;
  hitCount: number;
}

function countedRule(rule: FaultRule): CountedRule {
  return { rule, matchCount: 0, hitCount: 0 };
}

function touches(range: ByteRange | undefined, offset: number, length: number): boolean {
  if (range === undefined) return true;
  return range.offset < offset + length && offset < range.offset + range.length;
}
