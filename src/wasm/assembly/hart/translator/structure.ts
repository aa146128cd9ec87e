/**
 * WebAssembly's control flow out of the blocks' graph: loops for its cycles, blocks for its forward
 * edges.
 *
 * A group is a set of blocks that are laid out together: the whole region, or the body of a loop.
 * Its strongly connected components are its items, in topological order. Each item has a label
 * that stands right before it
 *
 *   block  block  block  <dispatch>  end item0  end item1  end item2
 *
 * so that what comes earlier can jump to it. An item is a block, or a loop: of its blocks one, the
 * head, is where the loop is continued; without the edges to the head what is left is a smaller
 * group, laid out in the same way. If a loop can be entered at other blocks than its head, a
 * dispatch at its top goes on where the local `selector` says; the same at the top of the region.
 * A block that is jumped to by way of a dispatch has a number for it; those of entries are first.
 *
 * The head is the only way in, if there is one; else the target, with the least address, of a jump
 * back in the code: mostly the head of the guest's outermost loop.
 */

import { emitBlock } from "./blocks";
import {
  blockCount,
  blockEntry,
  blockStart,
  DISCOVER_END,
  entryCount,
  successor,
  successorCount,
} from "./discover";
import { area } from "./area";
import { SELECTOR } from "./locals";
import * as w from "./writer";

/** u16 fields of a node, and what stands in them. */
const NODE_STRIDE: u32 = 32;
const NODES: u32 = DISCOVER_END;
const GROUP: u32 = 0;
const INDEX: u32 = 2; // of Tarjan's search, + 1; 0: not seen
const LOW: u32 = 4;
const ON_STACK: u32 = 6;
const ITEM: u32 = 8;
/** Label of the item that the node is in. */
const LABEL: u32 = 10;
/** Whether that item begins with a dispatch. */
const LABEL_DISPATCHES: u32 = 12;
/** Label of the loop that the node is the head of, + 1. */
const LOOP: u32 = 14;
const LOOP_DISPATCHES: u32 = 16;
/** Number for dispatches, + 1. */
const NUMBER: u32 = 18;
/** Its item is a loop that can be entered here from outside. */
const WAY_IN: u32 = 20;
/** The dispatch of its group leads here. */
const DISPATCHED: u32 = 22;

/** An item: u16 fields. */
const ITEM_STRIDE: u32 = 8;
const ITEM_FIRST: u32 = 0;
const ITEM_LENGTH: u32 = 2;
const ITEM_IS_LOOP: u32 = 4;
const ITEM_DISPATCHES: u32 = 6;

/** u16 lists: Tarjan's stack, and the blocks of groups in the order of their items. */
const STACK: u32 = NODES + 1024 * NODE_STRIDE;
const LISTS: u32 = STACK + 2 * 1024;
const LISTS_END: u32 = LISTS + 0x10000;

let scratch: u32 = 0;
let groupCount: u32 = 0;
let numberCount: u32 = 0;
let searchCount: u32 = 0;
let stackCount: u32 = 0;
/** End of the lists in use. */
let listEnd: u32 = 0;
/** Label of the region's own loop. */
export let topLabel: u32 = 0;
/** It could not be laid out. */
export let hasFailed: bool = false;

function node(block: u32, field: u32): u32 {
  return load<u16>(scratch + NODES + block * NODE_STRIDE + field);
}

function setNode(block: u32, field: u32, value: u32): void {
  store<u16>(scratch + NODES + block * NODE_STRIDE + field, <u16>value);
}

function listed(place: u32): u32 {
  return load<u16>(place);
}

/** Emits all blocks, within the region's loop, whose label is `label`. */
export function emitStructure(label: u32): void {
  scratch = area();
  topLabel = label;
  groupCount = 1;
  numberCount = entryCount;
  hasFailed = false;
  memory.fill(scratch + NODES, 0, blockCount * NODE_STRIDE);
  const list = scratch + LISTS;
  for (let block: u32 = 0; block < blockCount; block++) {
    setNode(block, GROUP, 1);
    store<u16>(list + (block << 1), <u16>block);
    const entry = blockEntry(block);
    if (entry >= 0) {
      setNode(block, NUMBER, entry + 1);
      setNode(block, WAY_IN, 1);
    }
  }
  listEnd = list + (blockCount << 1);
  emitGroup(list, blockCount, 1, true);
}

// ---- edges --------------------------------------------------------------------------------------

/** Goes on at `block`, which is in the region. */
export function emitEdge(block: u32): void {
  const loop = node(block, LOOP);
  if ((loop !== 0 ? node(block, LOOP_DISPATCHES) : node(block, LABEL_DISPATCHES)) !== 0) {
    w.i32Const(numberOf(block));
    w.set(SELECTOR);
  }
  w.branch(loop !== 0 ? loop - 1 : node(block, LABEL));
}

function numberOf(block: u32): u32 {
  const known = node(block, NUMBER);
  if (known !== 0) return known - 1;
  setNode(block, NUMBER, ++numberCount);
  return numberCount - 1;
}

/** Whether a loop is continued at `block`, so that the budget must be looked at there. */
export function isLoopHead(block: u32): bool {
  return node(block, LOOP) !== 0;
}

// ---- groups -------------------------------------------------------------------------------------

/**
 * Emits a group: `count` blocks at `list`, all with this GROUP. `dispatches`: it is entered where
 * the selector says, at blocks with WAY_IN; else at the first of the list.
 */
function emitGroup(list: u32, count: u32, group: u32, dispatches: bool): void {
  for (let i: u32 = 0; i < count; i++) {
    const block = listed(list + (i << 1));
    setNode(block, DISPATCHED, node(block, WAY_IN));
  }
  const sorted = listEnd;
  const items = sorted + (count << 1);
  const itemCount = sortGroup(list, count, group, sorted, items);
  listEnd = items + itemCount * ITEM_STRIDE;
  if (listEnd >= scratch + LISTS_END - 0x4000) hasFailed = true;
  if (hasFailed) return;

  for (let item: u32 = 0; item < itemCount; item++) {
    analyseItem(items + item * ITEM_STRIDE, sorted);
  }
  const first: u32 = dispatches ? 0 : 1;
  for (let item = itemCount; item > first;) {
    item--;
    labelItem(items + item * ITEM_STRIDE, sorted, w.block());
  }
  if (dispatches) emitDispatch(list, count);
  for (let item: u32 = 0; item < itemCount; item++) {
    if (item >= first) w.end();
    emitItem(items + item * ITEM_STRIDE, sorted);
  }
  listEnd = sorted;
}

function itemFirst(item: u32, sorted: u32): u32 {
  return sorted + (<u32>load<u16>(item, ITEM_FIRST) << 1);
}

function labelItem(item: u32, sorted: u32, label: u32): void {
  const place = itemFirst(item, sorted);
  const count: u32 = load<u16>(item, ITEM_LENGTH);
  for (let i: u32 = 0; i < count; i++) {
    const block = listed(place + (i << 1));
    setNode(block, LABEL, label);
    setNode(block, LABEL_DISPATCHES, load<u16>(item, ITEM_DISPATCHES));
  }
}

/** Goes to what the selector says, one of the blocks with DISPATCHED. */
function emitDispatch(list: u32, count: u32): void {
  let ways: u32 = 0;
  let last: u32 = 0;
  let greatest: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const block = listed(list + (i << 1));
    if (node(block, DISPATCHED) === 0) continue;
    ways++;
    last = block;
    greatest = max(greatest, numberOf(block));
  }
  const head = listed(list);
  if (ways > 4) {
    // Mostly a loop is continued, not entered.
    if (node(head, LOOP) !== 0) emitWay(head);
    w.get(SELECTOR);
    w.byte(0x0e); // br_table
    w.unsigned(greatest + 1);
    for (let number: u32 = 0; number <= greatest; number++) {
      const block = blockOfNumber(list, count, number);
      w.unsigned(w.depth - 1 - node(block === ~0 ? last : block, LABEL));
    }
    w.unsigned(w.depth - 1 - node(last, LABEL));
    return;
  }
  for (let i: u32 = 0; i < count; i++) {
    const block = listed(list + (i << 1));
    if (node(block, DISPATCHED) !== 0 && block !== last) emitWay(block);
  }
  w.branch(node(last, LABEL));
}

function emitWay(block: u32): void {
  w.get(SELECTOR);
  w.i32Const(numberOf(block));
  w.byte(w.I32_EQ);
  w.branchIf(node(block, LABEL));
}

function blockOfNumber(list: u32, count: u32, number: u32): u32 {
  for (let i: u32 = 0; i < count; i++) {
    const block = listed(list + (i << 1));
    if (node(block, DISPATCHED) !== 0 && node(block, NUMBER) === number + 1) return block;
  }
  return ~0;
}

// ---- items --------------------------------------------------------------------------------------

/** Finds out how the item can be entered, if it is a loop, and puts its head first. */
function analyseItem(item: u32, sorted: u32): void {
  const place = itemFirst(item, sorted);
  const count: u32 = load<u16>(item, ITEM_LENGTH);
  const block = listed(place);
  const isLoop = count > 1 || (node(block, LOOP) === 0 && hasEdge(block, block));
  store<u16>(item, isLoop ? 1 : 0, ITEM_IS_LOOP);
  store<u16>(item, 0, ITEM_DISPATCHES);
  if (!isLoop) return;
  const number = node(block, ITEM);
  const group = node(block, GROUP);
  let ways: u32 = 0;
  let way: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const each = listed(place + (i << 1));
    const isWayIn = blockEntry(each) >= 0 || isReachedFromOutside(each, group, number);
    setNode(each, WAY_IN, isWayIn ? 1 : 0);
    if (!isWayIn) continue;
    ways++;
    way = each;
  }
  const head = chooseHead(place, count);
  const hasOtherWays = ways > 1 || way !== head;
  for (let i: u32 = 0; i < count; i++) {
    const at = place + (i << 1);
    if (listed(at) !== head) continue;
    store<u16>(at, load<u16>(place));
    store<u16>(place, <u16>head);
    break;
  }
  setNode(head, WAY_IN, 1);
  store<u16>(item, hasOtherWays ? 1 : 0, ITEM_DISPATCHES);
}

function hasEdge(from: u32, to: u32): bool {
  const count = successorCount(from);
  for (let which: u32 = 0; which < count; which++) {
    if (successor(from, which) === to) return true;
  }
  return false;
}

/** Whether any block that is not in the item has an edge to `block`. */
function isReachedFromOutside(block: u32, group: u32, item: u32): bool {
  for (let from: u32 = 0; from < blockCount; from++) {
    if (node(from, GROUP) === group && node(from, ITEM) === item) continue;
    if (hasEdge(from, block)) return true;
  }
  return false;
}

/** Target with the least address of a jump back within the item. */
function chooseHead(place: u32, count: u32): u32 {
  let head = listed(place);
  let least: i32 = i32.MAX_VALUE;
  for (let i: u32 = 0; i < count; i++) {
    const from = listed(place + (i << 1));
    const edges = successorCount(from);
    for (let which: u32 = 0; which < edges; which++) {
      const to = successor(from, which);
      if (blockStart(to) > blockStart(from) || blockStart(to) >= least) continue;
      if (node(to, LOOP) !== 0 || !isListed(place, count, to)) continue;
      head = to;
      least = blockStart(to);
    }
  }
  return head;
}

function isListed(place: u32, count: u32, block: u32): bool {
  for (let i: u32 = 0; i < count; i++) {
    if (listed(place + (i << 1)) === block) return true;
  }
  return false;
}

function emitItem(item: u32, sorted: u32): void {
  const place = itemFirst(item, sorted);
  const count: u32 = load<u16>(item, ITEM_LENGTH);
  const head = listed(place);
  if (load<u16>(item, ITEM_IS_LOOP) === 0) {
    emitBlock(head);
    return;
  }
  const dispatches: u32 = load<u16>(item, ITEM_DISPATCHES);
  const group = ++groupCount;
  for (let i: u32 = 0; i < count; i++) setNode(listed(place + (i << 1)), GROUP, group);
  setNode(head, LOOP, w.loop() + 1);
  setNode(head, LOOP_DISPATCHES, dispatches);
  emitGroup(place, count, group, dispatches !== 0);
  w.end();
}

// ---- strongly connected components --------------------------------------------------------------

/**
 * Tarjan's algorithm over the edges within the group, but for those to heads of open loops. Writes
 * the blocks, item after item, to `sorted`, and the items to `items`; returns how many.
 */
function sortGroup(list: u32, count: u32, group: u32, sorted: u32, items: u32): u32 {
  for (let i: u32 = 0; i < count; i++) setNode(listed(list + (i << 1)), INDEX, 0);
  searchCount = 0;
  stackCount = 0;
  foundBlocks = 0;
  foundItems = 0;
  sortedList = sorted;
  itemList = items;
  // What is searched last comes first.
  for (let i = count; i > 0;) {
    i--;
    const block = listed(list + (i << 1));
    if (node(block, INDEX) === 0) search(block, group);
  }
  reverseItems(items, foundItems);
  return foundItems;
}

let foundBlocks: u32 = 0;
let foundItems: u32 = 0;
let sortedList: u32 = 0;
let itemList: u32 = 0;

function search(block: u32, group: u32): void {
  setNode(block, INDEX, ++searchCount);
  setNode(block, LOW, searchCount);
  store<u16>(scratch + STACK + (stackCount++ << 1), <u16>block);
  setNode(block, ON_STACK, 1);
  const edges = successorCount(block);
  for (let which: u32 = 0; which < edges; which++) {
    const to = successor(block, which);
    if (node(to, GROUP) !== group || node(to, LOOP) !== 0) continue;
    if (node(to, INDEX) === 0) {
      search(to, group);
      setNode(block, LOW, min(node(block, LOW), node(to, LOW)));
    } else if (node(to, ON_STACK) !== 0) {
      setNode(block, LOW, min(node(block, LOW), node(to, INDEX)));
    }
  }
  if (node(block, LOW) === node(block, INDEX)) takeItem(block);
}

function takeItem(root: u32): void {
  const first = foundBlocks;
  let block: u32 = 0;
  do {
    block = load<u16>(scratch + STACK + (--stackCount << 1));
    setNode(block, ON_STACK, 0);
    setNode(block, ITEM, foundItems);
    store<u16>(sortedList + (foundBlocks++ << 1), <u16>block);
  } while (block !== root);
  const item = itemList + foundItems++ * ITEM_STRIDE;
  store<u16>(item, <u16>first, ITEM_FIRST);
  store<u16>(item, <u16>(foundBlocks - first), ITEM_LENGTH);
}

function reverseItems(items: u32, count: u32): void {
  for (let low: u32 = 0; low + low + 1 < count; low++) {
    const a = items + low * ITEM_STRIDE;
    const b = items + (count - 1 - low) * ITEM_STRIDE;
    const item = load<u64>(a);
    store<u64>(a, load<u64>(b));
    store<u64>(b, item);
  }
}
