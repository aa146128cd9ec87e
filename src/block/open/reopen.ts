/**
 * blockdev-reopen: other settings and other children for nodes that stand, between two requests,
 * all of them or none. What is not said goes back to its default, so that the arguments are those
 * of blockdev-add. Texts are QEMU's (bdrv_reopen_prepare in block.c).
 *
 * A child that is named by its node-name takes the place of the one that is there; one that was
 * described in place stays, and so must its description. Of drivers' own options some may change
 * (see CHANGEABLE), the others not.
 *
 * @module
 */

import { FileNode } from "../drivers/file.ts";
import { RawNode, type RawPart, rawPartSize } from "../drivers/raw.ts";
import { BlockError } from "../errors.ts";
import type { BlockEdge } from "../edge.ts";
import type { BlockGraph } from "../graph.ts";
import type { BlockNode, NodeSettings } from "../node.ts";
import type { Blockdev } from "./blockdev.ts";
import type { OpenContext } from "./context.ts";
import { inputError } from "./qapi.ts";

/** Options of drivers that choose how the system is used: they may change, and change nothing. */
const WITHOUT_EFFECT = new Set([
  "aio",
  "aio-max-batch",
  "cache-clean-interval",
  "cache-size",
  "drop-cache",
  "l2-cache-entry-size",
  "l2-cache-size",
  "locking",
  "overlap-check",
  "pass-discard-other",
  "pass-discard-request",
  "pass-discard-snapshot",
  "refcount-cache-size",
  "x-check-cache-dropped",
]);

/** Drivers that keep what they were opened with. */
const NOT_REOPENED = new Set(["copy-before-write", "snapshot-access"]);

/** What a node is to become. */
interface Plan {
  readonly node: BlockNode;
  readonly blockdev: Blockdev;
  readonly settings: NodeSettings;
  /** Children that are replaced; a backing node also by nothing. */
  readonly children: { name: string; edge: BlockEdge | null; to: BlockNode | null }[];
  /** Of a raw node: what it is to show of its file. */
  readonly part: RawPart | null;
}

/** See the module's head. Throws a BlockError and changes nothing where one of them can't be had. */
export async function reopenNodes(
  graph: BlockGraph,
  blockdevs: readonly Blockdev[],
  context: OpenContext,
): Promise<void> {
  const plans = blockdevs.map((blockdev) => plan(graph, blockdev, context));
  if (plans.length === 0) return;
  const nodes = plans.flatMap(({ node, children }) => [
    node,
    ...children.flatMap(({ edge, to }) => [edge?.node ?? [], to ?? []].flat()),
  ]);
  await graph.drained(nodes, () => carryOut(graph, plans));
  for (const { node, blockdev } of plans) context.opened.set(node, blockdev);
  await graph.sweep();
}

function plan(graph: BlockGraph, blockdev: Blockdev, context: OpenContext): Plan {
  const nodeName = blockdev.base["node-name"];
  if (nodeName === undefined) throw inputError("node-name not specified");
  const node = graph.find(nodeName);
  if (node === undefined) throw inputError(`Failed to find node with node-name='${nodeName}'`);
  if (node.driver !== blockdev.tag) throw inputError("Cannot change the option 'driver'");
  if (NOT_REOPENED.has(node.driver)) {
    throw inputError(
      `Block format '${node.driver}' used by node '${nodeName}' does not support reopening files`,
    );
  }
  const mayChange = (name: string): boolean =>
    WITHOUT_EFFECT.has(name) || (node instanceof RawNode && (name === "offset" || name === "size"));
  const before = context.opened.get(node)?.variant ?? {};
  const children: Plan["children"] = [];
  for (const [name, value] of Object.entries(blockdev.variant)) {
    if (isChild(name, value)) {
      const change = childChange(graph, { node, name, value, before: before[name] });
      if (change !== null) children.push(change);
    } else if (!mayChange(name) && !isSame(value, before[name])) {
      throw inputError(`Cannot change the option '${name}'`);
    }
  }
  for (const [name, value] of Object.entries(before)) {
    if (name in blockdev.variant || mayChange(name)) continue;
    if (name === "backing") {
      if (node.backing !== null && value !== null) {
        throw inputError(
          `backing is missing for '${nodeName}'`,
        );
      }
      continue;
    }
    throw inputError(`Option '${name}' cannot be reset to its default value`);
  }
  if (node instanceof FileNode && node.isDirect !== (blockdev.base.cache?.direct ?? false)) {
    throw inputError("Cannot change the option 'cache.direct'");
  }
  const part = partOf(node, blockdev, children);
  return { node, blockdev, settings: settingsOf(blockdev, node), children, part };
}

/** What a raw node is to show of the file that it is to have. */
function partOf(
  node: BlockNode,
  { variant }: Blockdev,
  children: Plan["children"],
): RawPart | null {
  if (!(node instanceof RawNode)) return null;
  const { offset, size } = variant as { offset?: number; size?: number };
  const part = { offset: offset ?? 0, sizeBytes: size };
  const file = children.find(({ name }) => name === "file")?.to ?? node.children.get("file")?.node;
  if (file !== undefined) rawPartSize(file, part);
  return part;
}

function isChild(name: string, value: unknown): boolean {
  if (name !== "file" && name !== "backing" && name !== "image" && name !== "target") return false;
  return value === null || typeof value === "string" || typeof value === "object";
}

function childChange(
  graph: BlockGraph,
  { node, name, value, before }: {
    node: BlockNode;
    name: string;
    value: unknown;
    before: unknown;
  },
): Plan["children"][number] | null {
  const edge = node.children.get(name === "image" ? "file" : name) ?? null;
  if (value === null) return edge === null ? null : { name, edge, to: null };
  if (typeof value !== "string") {
    if (isSame(value, before)) return null;
    throw inputError(`Cannot change the option '${name}.driver'`);
  }
  if (edge !== null && edge.node.nodeName === value) return null;
  const to = graph.find(value);
  if (to === undefined) {
    throw new BlockError("ENOENT", `Cannot find device='' nor node-name='${value}'`);
  }
  if (name === "target" || name === "image") throw inputError(`Cannot change the option '${name}'`);
  return { name, edge, to };
}

/** What becomes of discards stays where it is not said, as in QEMU; the rest goes back. */
function settingsOf({ base }: Blockdev, node: BlockNode): NodeSettings {
  const discard = base.discard ?? node.discardMode;
  const detectZeroes = base["detect-zeroes"] ?? "off";
  if (detectZeroes === "unmap" && discard !== "unmap") {
    throw inputError(
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    );
  }
  return {
    isReadOnly: base["read-only"] ?? false,
    discard,
    detectZeroes,
    ignoresFlush: base.cache?.["no-flush"] ?? false,
  };
}

/** Whether two checked options say the same, whatever the order of their members. */
function isSame(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [namesA, namesB] = [Object.keys(a), Object.keys(b)];
  return namesA.length === namesB.length &&
    namesA.every((name) => isSame((a as never)[name], (b as never)[name]));
}

/** Nothing is in flight. What was done is undone where a later step fails. */
async function carryOut(graph: BlockGraph, plans: readonly Plan[]): Promise<void> {
  const undo: (() => void | Promise<void>)[] = [];
  try {
    for (const { node, settings, children, part } of plans) {
      for (const { name, edge, to } of children) {
        const from = edge?.node ?? null;
        const replace = (next: BlockNode | null): void => {
          if (name === "backing") graph.setBacking(node, next);
          else if (edge !== null && next !== null) graph.replaceChild(edge, next);
        };
        replace(to);
        undo.push(() => replace(from));
      }
      if (part !== null && node instanceof RawNode && !isSame(part, node.part)) {
        const shown = node.part;
        node.usePart(part);
        undo.push(() => node.usePart(shown));
      }
      const before = { ...node.settings };
      const { isReadOnly, ...others } = settings;
      node.configure(others);
      undo.push(() => node.configure(before));
      if (isReadOnly === before.isReadOnly) continue;
      await graph.setReadOnly(node.nodeName, isReadOnly);
      undo.push(() => graph.setReadOnly(node.nodeName, before.isReadOnly));
    }
  } catch (error) {
    for (const step of undo.reverse()) await step();
    throw error;
  }
}
