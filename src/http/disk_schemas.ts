/**
 * The JSON of disks, their bitmaps, checkpoints, jobs, transactions and events: see schemas.ts.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { limits } from "../limits.ts";
import { DISK_NAME_PATTERN, NAME_PATTERN, NAME_RULE } from "../vm/names.ts";
import { BitmapName, bytes, canHaveClusters, NewFleecingSchema, NO_CLUSTERS } from "./schemas.ts";

const SECTOR_BYTES = 512;
const CLUSTER_BYTES_MAX = 2 * 1024 * 1024;
const GRANULARITY_BYTES_MAX = 2 ** 31;
const PATH_CHARACTERS = 4096;
const STATES_MAX = 16;

const NameSchema = z.string().regex(NAME_PATTERN, { error: `a name is ${NAME_RULE}` });
const DiskName = z.string().regex(DISK_NAME_PATTERN, {
  error: "is not a disk's name: one that was chosen, or MACHINE:DISK",
}).openapi({ example: "demo:disk0" });
const FormatSchema = z.enum(["raw", "qcow2"]);
const ClusterSchema = powerOfTwo({ minimum: SECTOR_BYTES, maximum: CLUSTER_BYTES_MAX });
const SizeSchema = bytes({
  minimum: SECTOR_BYTES,
  maximum: limits.diskMaxBytes,
  multiple: SECTOR_BYTES,
});

function powerOfTwo({ minimum, maximum }: { minimum: number; maximum: number }) {
  return z.int().min(minimum).max(maximum)
    .refine((size) => Number.isInteger(Math.log2(size)), { error: "must be a power of two" });
}

/**
 * The path of a disk.
 *
 * @internal
 */
export const DiskParams = z.strictObject({ disk: DiskName });
/**
 * The path of a disk's bitmap.
 *
 * @internal
 */
export const BitmapParams = z.strictObject({ disk: DiskName, bitmap: BitmapName });
/**
 * The path of a checkpoint.
 *
 * @internal
 */
export const CheckpointParams = z.strictObject({ vm: NameSchema, checkpoint: NameSchema });

const JobId = z.string().regex(/^[A-Za-z][A-Za-z0-9._-]{0,62}$/, {
  error: "is not a job's id: a letter, then letters, digits, '-', '.' or '_'",
});
/**
 * The path of a job.
 *
 * @internal
 */
export const JobParams = z.strictObject({ job: JobId });

/**
 * A disk to be made.
 *
 * @internal
 */
export const NewDiskResourceSchema = z.strictObject({
  name: NameSchema,
  sizeBytes: SizeSchema.optional()
    .describe("Needed unless `backing`, `path` or `copyOf` says it"),
  format: FormatSchema.optional().describe("Without it: qcow2 with `backing`, else raw"),
  clusterSizeBytes: ClusterSchema.optional().describe("Of qcow2; 64 KiB unless given"),
  backing: DiskName.optional()
    .describe("A disk whose content it begins with, and which then stays as it is"),
  path: z.string().regex(/^\//).max(PATH_CHARACTERS).optional()
    .describe("An image that is there, in a folder that the operator allowed; needs `format`"),
  copyOf: DiskName.optional().describe("A disk to be copied by a job, as it is now"),
}).refine(
  ({ format, clusterSizeBytes, backing, copyOf }) =>
    canHaveClusters(format ?? (backing ?? copyOf ? "qcow2" : "raw"), clusterSizeBytes),
  NO_CLUSTERS,
).refine(({ backing, path, copyOf }) => [backing, path, copyOf].filter(Boolean).length <= 1, {
  error: "takes one of backing, path and copyOf",
}).refine(
  ({ sizeBytes, backing, path, copyOf }) => Boolean(sizeBytes ?? backing ?? path ?? copyOf),
  {
    error: "needs sizeBytes",
  },
).openapi("NewDiskResource");

/**
 * A change of a disk.
 *
 * @internal
 */
export const ResizeDiskSchema = z.strictObject({
  sizeBytes: SizeSchema,
  allowShrink: z.boolean().default(false).describe("What is beyond the new end is lost"),
}).openapi("ResizeDisk");

const DiskFields = {
  name: z.string(),
  vm: z.string().nullable().describe("The machine that has it open"),
  owner: z.string().nullable().describe("The machine that it was made with and goes with"),
  format: FormatSchema,
  sizeBytes: z.int(),
  backing: z.string().nullable().describe("The disk that it stands on"),
  createdAt: z.iso.datetime(),
};

/**
 * A disk in a list.
 *
 * @internal
 */
export const DiskSchema = z.object(DiskFields).openapi("Disk");

/**
 * A dirty bitmap.
 *
 * @internal
 */
export const BitmapSchema = z.object({
  name: z.string(),
  dirtyBytes: z.int(),
  granularityBytes: z.int(),
  recording: z.boolean(),
  busy: z.boolean().describe("A fleecing shows it or a job works on it"),
  persistent: z.boolean().describe("Kept with the disk; else it ends with the disk's worker"),
  inconsistent: z.boolean().describe("It missed changes in a crash: it can only be removed"),
}).openapi("Bitmap");

/**
 * A disk with what its worker knows.
 *
 * @internal
 */
export const DiskDetailsSchema = z.object({
  ...DiskFields,
  readOnly: z.boolean(),
  clusterSizeBytes: z.int().nullable(),
  allocatedBytes: z.int().nullable().describe("What the active file takes"),
  chain: z.array(z.object({
    nodeName: z.string(),
    driver: z.string(),
    path: z.string().nullable(),
    sizeBytes: z.int(),
  })).describe("The active image, then what it is backed by"),
  bitmaps: z.array(BitmapSchema),
}).openapi("DiskDetails");

/**
 * The query of an upload.
 *
 * @internal
 */
export const UploadQuery = z.strictObject({
  offset: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(0)
    .describe("Where the body goes"),
});

const BitmapOptions = {
  granularityBytes: powerOfTwo({ minimum: SECTOR_BYTES, maximum: GRANULARITY_BYTES_MAX })
    .optional().describe("Without it: the disk's cluster, of 4 KiB to 64 KiB"),
  persistent: z.boolean().optional().describe("Without it: where the disk can keep it (qcow2)"),
  disabled: z.boolean().default(false).describe("It does not record yet"),
};

/**
 * A bitmap to be added.
 *
 * @internal
 */
export const NewBitmapSchema = z.strictObject(BitmapOptions).openapi("NewBitmap");

const MergeSources = z.array(z.strictObject({
  disk: DiskName.optional().describe("Without it: the same disk"),
  name: BitmapName,
})).min(1).max(limits.transactionActions);

/**
 * What is merged into a bitmap.
 *
 * @internal
 */
export const MergeBitmapSchema = z.strictObject({ bitmaps: MergeSources }).openapi("MergeBitmap");

/**
 * A checkpoint.
 *
 * @internal
 */
export const CheckpointSchema = z.object({
  name: z.string(),
  vm: z.string(),
  createdAt: z.iso.datetime().describe("The moment from which on changes are recorded"),
  disks: z.array(z.object({
    disk: z.string(),
    usable: z.boolean().describe("False: the bitmap was lost, the next fleecing is a whole one"),
    dirtyBytes: z.int().nullable().describe("What changed since, null where that is lost"),
    persistent: z.boolean().nullable(),
  })),
}).openapi("Checkpoint");

const SpeedSchema = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const ErrorPolicy = z.enum(["report", "ignore", "stop", "enospc"]).default("report");
const TargetSchema = z.strictObject({
  name: NameSchema.describe("The disk that the job makes"),
  format: FormatSchema.default("qcow2"),
  clusterSizeBytes: ClusterSchema.optional(),
  backing: DiskName.optional().describe("The disk that it stands on: the backup before"),
}).refine(
  ({ format, clusterSizeBytes }) => canHaveClusters(format, clusterSizeBytes),
  NO_CLUSTERS,
);
const JobFields = {
  id: JobId.optional().describe("Without it: one of the service's"),
  speed: SpeedSchema.default(0).describe("Bytes a second, 0: no limit"),
  autoFinalize: z.boolean().default(true).describe("Else it waits in `pending` for finalize"),
};
const BackupFields = {
  ...JobFields,
  sync: z.enum(["full", "top", "none", "incremental", "bitmap"]).default("full"),
  bitmap: BitmapName.optional(),
  bitmapMode: z.enum(["on-success", "never", "always"]).optional(),
  target: TargetSchema,
  compress: z.boolean().default(false),
  onSourceError: ErrorPolicy,
  onTargetError: ErrorPolicy,
};

/**
 * A job to be started.
 *
 * @internal
 */
export const NewJobSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("backup"), disk: DiskName, ...BackupFields }),
  z.strictObject({
    type: z.literal("mirror"),
    disk: DiskName,
    ...JobFields,
    sync: z.enum(["full", "top", "none"]).default("full"),
    copyMode: z.enum(["background", "write-blocking"]).default("background"),
    target: TargetSchema,
    onSourceError: ErrorPolicy,
    onTargetError: ErrorPolicy,
  }),
  z.strictObject({
    type: z.literal("commit"),
    disk: DiskName,
    ...JobFields,
    top: z.string().max(64).optional().describe("A node of the disk's chain; the active one"),
    base: z.string().max(64).optional().describe("A node of the disk's chain; the lowest one"),
    onError: ErrorPolicy,
  }),
  z.strictObject({
    type: z.literal("stream"),
    disk: DiskName,
    ...JobFields,
    base: z.string().max(64).optional().describe("What the chain keeps below; nothing"),
    onError: ErrorPolicy,
  }),
]).openapi("NewJob");

/**
 * A job as it stands.
 *
 * @internal
 */
export const JobSchema = z.object({
  id: z.string(),
  type: z.string().describe("backup, mirror, commit, stream, or what a monitor started"),
  status: z.string().describe(
    "In QEMU's words: created, running, paused, ready, standby, waiting, pending, aborting, " +
      "concluded",
  ),
  disk: z.string(),
  vm: z.string().nullable(),
  target: z.string().nullable().describe("The disk that it makes"),
  currentProgress: z.int(),
  totalProgress: z.int(),
  speed: z.int(),
  error: z.string().nullable().describe("Why it failed"),
  createdAt: z.iso.datetime(),
  endedAt: z.iso.datetime().nullable(),
}).openapi("Job");

/**
 * A change of a job.
 *
 * @internal
 */
export const ChangeJobSchema = z.strictObject({ speed: SpeedSchema }).openapi("ChangeJob");

/**
 * The query of a wait.
 *
 * @internal
 */
export const WaitQuery = z.strictObject({
  state: z.string().regex(/^[a-z]+(,[a-z]+)*$/, { error: "must be states, separated by commas" })
    .optional()
    .transform((text) => (text ?? "").split(",").filter((state) => state !== ""))
    .refine((states) => states.length <= STATES_MAX, { error: "names too many states" })
    .openapi({ type: "string" })
    .describe("States to wait for, separated by commas; without it: `running`, of a job its end"),
  timeout: z.coerce.number().min(0).max(limits.waitMs / 1000).default(30)
    .describe("Seconds"),
});

/** In transactions disks have their names in the machine. */
const OwnDisk = z.strictObject({ disk: NameSchema });

/**
 * Actions at one moment.
 *
 * @internal
 */
export const TransactionSchema = z.strictObject({
  actions: z.array(z.discriminatedUnion("type", [
    NewFleecingSchema.extend({ type: z.literal("fleecing") }),
    OwnDisk.extend({ type: z.literal("backup"), ...BackupFields }),
    OwnDisk.extend({ type: z.literal("snapshot") }),
    OwnDisk.extend({ type: z.literal("bitmap-add"), name: BitmapName, ...BitmapOptions }),
    OwnDisk.extend({ type: z.literal("bitmap-remove"), name: BitmapName }),
    OwnDisk.extend({ type: z.literal("bitmap-clear"), name: BitmapName }),
    OwnDisk.extend({ type: z.literal("bitmap-enable"), name: BitmapName }),
    OwnDisk.extend({ type: z.literal("bitmap-disable"), name: BitmapName }),
    OwnDisk.extend({
      type: z.literal("bitmap-merge"),
      target: BitmapName,
      bitmaps: z.array(z.strictObject({ disk: NameSchema.optional(), name: BitmapName }))
        .min(1).max(limits.transactionActions),
    }),
  ])).min(1).max(limits.transactionActions),
}).openapi("Transaction");
