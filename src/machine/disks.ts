/**
 * The disks of a machine: for each a file, its raw node, a backend, and a virtio-blk device in the
 * slot of its place in the list.
 *
 *   [virtio-blk in slot N] -- backend --> disk-N (raw) --> file-N (file)
 *
 * Filters come between backend and raw node, under drain; nobody here notices.
 *
 * @module
 */

import { BlockBackend } from "../block/backend.ts";
import { FileNode } from "../block/drivers/file.ts";
import { RawNode } from "../block/drivers/raw.ts";
import type { BlockGraph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED } from "../block/types.ts";
import type { GuestMemory } from "./guest_memory.ts";
import type { DiskConfig } from "./messages.ts";
import { VirtioBlk } from "./virtio_blk.ts";
import { VirtioTransport } from "./virtio_transport.ts";

/** A disk of a machine with what is open of it. */
export interface MachineDisk {
  /** As the machine was told. */
  readonly config: DiskConfig;
  /** What the disk is below all filters. */
  readonly node: BlockNode;
  /** What the guest writes through. */
  readonly backend: BlockBackend;
  /** What the guest's driver talks to. */
  readonly device: VirtioBlk;
}

/** All disks of a machine, by slot. */
export class MachineDisks {
  /** By slot. */
  readonly list: readonly MachineDisk[];
  readonly #graph: BlockGraph;

  private constructor(graph: BlockGraph, list: MachineDisk[]) {
    this.#graph = graph;
    this.list = list;
  }

  /** Opens all, or none: throws a BlockError. */
  static async open(
    configs: DiskConfig[],
    options: { graph: BlockGraph; memory: GuestMemory },
  ): Promise<MachineDisks> {
    const disks: MachineDisk[] = [];
    try {
      for (const [slot, config] of configs.entries()) {
        disks.push(await openDisk(config, { ...options, slot }));
      }
    } catch (error) {
      await closeDisks(disks, options.graph);
      throw error;
    }
    return new MachineDisks(options.graph, disks);
  }

  /** The slots that have a disk. */
  get slots(): number[] {
    return this.list.map((_, slot) => slot);
  }

  /** Puts every disk into its slot as new: nothing may be in flight. */
  announce(): void {
    for (const { device } of this.list) device.announce();
  }

  /** Serves a slot's queue; true if there is more. */
  process(slot: number): boolean {
    return this.list[slot]?.device.process() ?? false;
  }

  /** Resolves when no request of the guest's is in flight. The harts must be parked. */
  async drain(): Promise<void> {
    await Promise.all(this.list.map(({ device }) => device.drain()));
  }

  /** Flushes and closes everything. What the guest has in flight is waited for. */
  async close(): Promise<void> {
    await this.drain();
    await closeDisks(this.list, this.#graph);
  }
}

async function openDisk(
  config: DiskConfig,
  options: { graph: BlockGraph; memory: GuestMemory; slot: number },
): Promise<MachineDisk> {
  const { graph, memory, slot } = options;
  const { isReadOnly, sizeBytes } = config;
  const file = await addNode(
    graph,
    FileNode.open({ nodeName: `file-${slot}`, path: config.path, isReadOnly, sizeBytes }),
  );
  try {
    const raw = await addNode(graph, new RawNode({ nodeName: `disk-${slot}`, file }));
    try {
      const backend = new BlockBackend(graph, {
        name: config.name,
        nodeName: raw.nodeName,
        perm: PERM_CONSISTENT_READ | (isReadOnly ? 0 : PERM_WRITE),
        shared: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED,
      });
      const device = new VirtioBlk(new VirtioTransport(memory, slot), {
        backend,
        isReadOnly,
        serial: config.serial,
      });
      return { config, node: raw, backend, device };
    } catch (error) {
      await graph.remove(raw.nodeName);
      throw error;
    }
  } catch (error) {
    await graph.remove(file.nodeName);
    throw error;
  }
}

/** A node that the graph does not take is still ours to close. */
async function addNode<T extends FileNode | RawNode>(graph: BlockGraph, node: T): Promise<T> {
  try {
    return graph.add(node);
  } catch (error) {
    await node.close();
    throw error;
  }
}

/** Flushes first, so that a failed flush is reported; closes whatever happens. */
async function closeDisks(disks: readonly MachineDisk[], graph: BlockGraph): Promise<void> {
  const failures: unknown[] = [];
  for (const [slot, { backend, config }] of disks.entries()) {
    try {
      if (!config.isReadOnly) await backend.flush();
    } catch (error) {
      failures.push(error);
    }
    await backend.release();
    await graph.remove(`disk-${slot}`);
    await graph.remove(`file-${slot}`);
  }
  if (failures.length > 0) throw failures[0];
}
