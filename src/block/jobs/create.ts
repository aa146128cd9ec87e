/**
 * The create job (QEMU's block/create.c): makes an image. It works on no content that anybody uses,
 * so that no BLOCK_JOB_* event tells of it, and never vanishes by itself.
 *
 * @module
 */

import type { BlockLayer } from "../block_layer.ts";
import { FileNode, type FileNodeOptions } from "../drivers/file.ts";
import { fileExists } from "../drivers/file_open.ts";
import { BlockError } from "../errors.ts";
import { allocateZeroes } from "../image/resize.ts";
import type { BlockNode } from "../node.ts";
import { absolutePath } from "../paths.ts";
import { createQcow2, type Qcow2CreateOptions } from "../qcow2/create.ts";
import { PERM_ALL, PERM_RESIZE, PERM_WRITE } from "../types.ts";
import { type Job, type JobDriver, JobFailure } from "./job.ts";

/** What is made, as in QEMU's BlockdevCreateOptions. */
export type CreateTarget =
  | {
    driver: "file";
    /** Is emptied if it is there. */
    filename: string;
    sizeBytes: number;
    /** "off" unless given. */
    preallocation?: "off" | "falloc" | "full";
    /** The path policy. */
    mayOpen: (path: string) => boolean;
  }
  | {
    driver: "raw";
    /** Gets the size. */
    file: BlockNode;
    sizeBytes: number;
    /** "off" unless given. */
    preallocation?: "off" | "falloc" | "full";
  }
  | ({
    driver: "qcow2";
    /** Part of the graph; whatever it holds is lost. Asked for when the job runs. */
    file: () => Promise<BlockNode>;
    /** Its external data file, where it is to have one. */
    dataFileNode?: (() => Promise<BlockNode>) | null;
  } & Omit<Qcow2CreateOptions, "dataFileNode">);

/** Permission bits of a new file, as in QEMU. */
const NEW_FILE_MODE = 0o644;

/** Starts to make an image. Throws a BlockError on a bad id; all else fails the job. */
export function startCreate(
  layer: BlockLayer,
  { jobId, target }: { jobId: string; target: CreateTarget },
): Job {
  const driver: JobDriver = {
    type: "create",
    isBlockJob: false,
    async run(job) {
      job.progress.total = 1;
      try {
        await create(job, target);
      } catch (error) {
        if (!(error instanceof BlockError)) throw error;
        throw new JobFailure(error.code, error.message, { cause: error });
      } finally {
        job.progress.current = 1;
      }
    },
  };
  const job = layer.jobs.create(driver, { jobId, autoDismiss: false });
  job.start();
  return job;
}

async function create(job: Job, target: CreateTarget): Promise<void> {
  if (target.driver === "file") return await createFile(target);
  const file = target.driver === "qcow2" ? await target.file() : target.file;
  take(job, "file", file);
  if (target.driver === "raw") return await job.operate(() => setSize(file, target));
  const dataFileNode = await target.dataFileNode?.() ?? null;
  if (dataFileNode !== null) take(job, "data-file", dataFileNode);
  await job.operate(() => createQcow2(file, { ...target, dataFileNode }));
}

/** Nobody else may write what an image is made in. */
function take(job: Job, name: string, node: BlockNode): void {
  job.addNode(node, {
    name,
    perm: PERM_WRITE | PERM_RESIZE,
    shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE),
  });
}

async function createFile(target: CreateTarget & { driver: "file" }): Promise<void> {
  const { filename, sizeBytes, mayOpen } = target;
  if (!mayOpen(absolutePath(filename))) {
    throw new BlockError("EPERM", `Could not create '${filename}': not in an allowed folder`);
  }
  const base = { nodeName: "", path: filename, isReadOnly: false };
  const node = fileExists(filename)
    ? FileNode.open(base)
    : createNode({ ...base, create: true, sizeBytes: 0, mode: NEW_FILE_MODE });
  try {
    await node.resize(0);
    await setSize(node, { sizeBytes, preallocation: target.preallocation ?? "off" });
  } finally {
    await node.close();
  }
}

function createNode(options: FileNodeOptions): FileNode {
  try {
    return FileNode.open(options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const message = error.message.replace(/^Could not open/, "Could not create");
    throw new BlockError(error.code, message, { cause: error });
  }
}

async function setSize(
  node: BlockNode,
  options: { sizeBytes: number; preallocation?: "off" | "falloc" | "full" },
): Promise<void> {
  const { sizeBytes, preallocation = "off" } = options;
  const before = Math.min(node.sizeBytes, sizeBytes);
  await node.resize(sizeBytes);
  if (preallocation === "off") return;
  await allocateZeroes(node, { offset: before, length: sizeBytes - before }, preallocation);
}
