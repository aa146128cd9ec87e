/**
 * Opens block nodes from blockdev-add's arguments: a node with the children that its arguments
 * describe or name, all of it, or nothing.
 *
 * Children that are opened here belong to their parent: they go with their last user (see
 * BlockGraph.adopt). Defaults of children are QEMU's (bdrv_inherited_options): caching and
 * read-only as the parent, discards passed on; a backing node is read-only.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { BlockError, toBlockError } from "../errors.ts";
import type { BlockGraph } from "../graph.ts";
import type { BlockNode } from "../node.ts";
import type { Blockdev, BlockdevRef } from "./blockdev.ts";
import type { ChildUse, CommonSettings, HeaderFile, OpenContext } from "./context.ts";
import {
  blockdevPath,
  headerDataBlockdev,
  headerFileBlockdev,
  pathOf,
  realPath,
} from "./open_image.ts";
import { inputError, rootPlace } from "./qapi.ts";
import type { JsonObject } from "./json.ts";

/** How the arguments were written. */
export interface InputForm {
  /** As `key=value,...`: all scalars are strings. */
  isKeyval?: boolean;
}

/** Checks blockdev-add's arguments. Throws a BlockError (EINVAL) in QEMU's words. */
export function parseBlockdev(
  input: JsonObject,
  context: OpenContext,
  form: InputForm = {},
): Blockdev {
  return context.drivers.types.options.parse(input, rootPlace(form));
}

/**
 * Opens a node with its children and adds all to the graph. Throws a BlockError and leaves nothing
 * behind where that fails. `input`: blockdev-add's arguments, QAPI's names.
 */
export function openBlockdev(
  graph: BlockGraph,
  input: JsonObject,
  context: OpenContext,
): Promise<BlockNode> {
  return openNode(graph, parseBlockdev(input, context), context);
}

/** `openBlockdev` for arguments that were checked. */
export function openNode(
  graph: BlockGraph,
  blockdev: Blockdev,
  context: OpenContext,
): Promise<BlockNode> {
  return new Opening(graph, context).open(blockdev, { parent: null, depth: 0, chain: [] });
}

/** For a child: the parent's settings, and what it is opened for. */
interface Position extends ChildUse {
  parent: CommonSettings | null;
  depth: number;
  /** The files of the images whose backing chain this is, the top one first. */
  chain: readonly string[];
}

/** One opening: what it has added so far, to be taken back where it fails. */
class Opening {
  readonly #graph: BlockGraph;
  readonly #context: OpenContext;

  constructor(graph: BlockGraph, context: OpenContext) {
    this.#graph = graph;
    this.#context = context;
  }

  async open(blockdev: Blockdev, position: Position): Promise<BlockNode> {
    const { base, tag } = blockdev;
    const driver = this.#context.drivers.byName.get(tag);
    if (driver === undefined) throw inputError(`Unknown driver '${tag}'`);
    const nodeName = base["node-name"] ?? "";
    if (base["node-name"] === "") throw inputError("Invalid node-name: ''");
    this.#checkNew(nodeName, position);
    const common = commonSettings(blockdev, position);
    const children: BlockNode[] = [];
    const openChild = async (
      reference: BlockdevRef,
      use: Partial<Position> = {},
    ): Promise<BlockNode> => {
      if (typeof reference === "string") return this.#find(reference);
      const { chain } = position;
      const below = { parent: common, depth: position.depth + 1, chain, ...use };
      const child = await this.open(reference, below);
      children.push(child);
      return child;
    };
    const openBackingFile = async (file: HeaderFile): Promise<BlockNode> => {
      const found = await headerFileBlockdev(file, this.#context);
      const chain = longerChain(position.chain, file, found);
      return await openChild(found, { isBacking: true, chain });
    };
    try {
      const node = await driver.open({
        nodeName,
        options: blockdev.variant,
        common,
        graph: this.#graph,
        context: this.#context,
        child: (reference, use) => openChild(reference, use),
        backingFile: openBackingFile,
        dataFile: (file) => openChild(headerDataBlockdev(file, this.#context)),
      });
      await this.#add(node, common);
      for (const child of children) this.#graph.adopt(child);
      this.#context.opened.set(node, blockdev);
      return node;
    } catch (error) {
      for (const child of children.reverse()) await this.#graph.remove(child.nodeName);
      throw toBlockError(error);
    }
  }

  #checkNew(nodeName: string, { depth }: Position): void {
    if (nodeName !== "" && this.#graph.find(nodeName) !== undefined) {
      throw inputError(`Duplicate nodes with node-name='${nodeName}'`);
    }
    if (depth > limits.backingChainDepth) {
      throw inputError(`More than ${limits.backingChainDepth} nodes stand above each other`);
    }
    if (this.#graph.list().length >= limits.blockNodes) {
      throw inputError(`There are ${limits.blockNodes} nodes already`);
    }
  }

  #find(nodeName: string): BlockNode {
    const node = this.#graph.find(nodeName);
    if (node !== undefined) return node;
    throw new BlockError(
      "ENOENT",
      `Cannot find device='${nodeName}' nor node-name='${nodeName}'`,
    );
  }

  async #add(node: BlockNode, common: CommonSettings): Promise<void> {
    try {
      node.configure({
        isReadOnly: node.isReadOnly || common.isReadOnly,
        discard: common.discard,
        detectZeroes: common.detectZeroes,
        ignoresFlush: common.cacheNoFlush,
      });
      this.#graph.add(node);
      await this.#context.bitmaps.load(node);
    } catch (error) {
      await node.close();
      throw error;
    }
  }
}

/** The files of a chain with the next one's image. Throws a BlockError (EINVAL) on a loop. */
function longerChain(
  chain: readonly string[],
  { fileName, image }: HeaderFile,
  found: Blockdev,
): readonly string[] {
  const imagePath = pathOf(image);
  const longer = imagePath === null ? chain : [...chain, realPath(imagePath)];
  const next = blockdevPath(found);
  if (next !== null && longer.includes(next)) {
    throw inputError(`The backing file '${fileName}' of '${imagePath}' makes a loop`);
  }
  return longer;
}

/** A node's settings: its own arguments, else what it inherits from its parent. */
function commonSettings({ base }: Blockdev, { parent, isBacking }: Position): CommonSettings {
  const { cache } = base;
  const discard = base.discard ?? (parent === null || isBacking ? "ignore" : "unmap");
  const detectZeroes = base["detect-zeroes"] ?? "off";
  if (detectZeroes === "unmap" && discard !== "unmap") {
    throw inputError(
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    );
  }
  if (base.active === false) throw inputError("Inactive nodes are not supported");
  const isReadOnly = base["read-only"] ?? (isBacking ? true : parent?.isReadOnly ?? false);
  return {
    isReadOnly,
    isAutoReadOnly: base["auto-read-only"] ?? (isBacking ? false : parent?.isAutoReadOnly ?? false),
    discard,
    detectZeroes,
    cacheDirect: cache?.direct ?? parent?.cacheDirect ?? false,
    cacheNoFlush: cache?.["no-flush"] ?? parent?.cacheNoFlush ?? false,
    forceShare: base["force-share"] ?? parent?.forceShare ?? false,
  };
}
