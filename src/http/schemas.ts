/**
 * The JSON of the API, as zod schemas: they validate what comes in, describe what goes out, and
 * make the OpenAPI document. Their types are inferred, since a written one would say everything
 * twice; `@internal` is for the documentation linter, which asks for written ones.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { limits } from "../limits.ts";
import { DISK_NAME_PATTERN, EXPORT_NAME_PATTERN, NAME_PATTERN, NAME_RULE } from "../vm/names.ts";
import { IMAGE_PARTS } from "../vm/store.ts";
import type { Schema } from "./zod_types.ts";

const MiB = 1024 * 1024;
const SECTOR_BYTES = 512;
const PAGE_SIZE = 100;
const PAGE_SIZE_MAX = 1000;
const DEFAULT_MEMORY_BYTES = 256 * MiB;
const CBW_TIMEOUT_SECONDS = 45;
const CBW_TIMEOUT_SECONDS_MAX = 24 * 3600;
const BITMAP_NAME_CHARACTERS = 1023;
const PATH_CHARACTERS = 4096;
const CLUSTER_BYTES_MAX = 2 * MiB;
const EXPIRY_SECONDS_MAX = 30 * 24 * 3600;

/** A name that a client chooses. */
const NameSchema = z.string().regex(NAME_PATTERN, { error: `a name is ${NAME_RULE}` })
  .openapi({ example: "demo" });

const DiskNameSchema = z.string().regex(DISK_NAME_PATTERN, {
  error: "is not a disk's name: one that was chosen, or MACHINE:DISK",
});

/**
 * A dirty bitmap's name: QEMU allows almost anything.
 *
 * @internal
 */
export const BitmapName = z.string().min(1).max(BITMAP_NAME_CHARACTERS)
  .refine((name) => !name.includes("\0"), "has a NUL character");

/**
 * A whole number of bytes.
 *
 * @internal
 */
export function bytes(options: { minimum: number; maximum: number; multiple: number }) {
  const { minimum, maximum, multiple } = options;
  const error = `must be a whole number of bytes from ${minimum} to ${maximum}` +
    (multiple > 1 ? `, a multiple of ${multiple}` : "");
  return z.int({ error }).min(minimum, { error }).max(maximum, { error })
    .multipleOf(multiple, { error });
}

/** The text of a kernel's command line. */
const CmdlineSchema = z.string().refine(
  (text) =>
    new TextEncoder().encode(text).length <= limits.cmdlineBytes &&
    // deno-lint-ignore no-control-regex
    !/[\x00-\x1f\x7f]/.test(text),
  { error: `must be at most ${limits.cmdlineBytes} bytes without control characters` },
);

/**
 * Query of every list.
 *
 * @internal
 */
export const PageQuery = z.strictObject({
  limit: z.coerce.number().int().min(1).max(PAGE_SIZE_MAX).default(PAGE_SIZE)
    .describe("How many to list at most"),
  cursor: z.string().max(limits.requestBodyBytes).optional()
    .describe("`nextCursor` of the answer before"),
});

/**
 * A list with its continuation.
 *
 * @internal
 */
export function pageOf<S extends Schema>(item: S) {
  return z.object({
    items: z.array(item),
    nextCursor: z.string().nullable().describe("Ask again with it as `cursor`; null at the end"),
  });
}

/**
 * The path of an image.
 *
 * @internal
 */
export const ImageParams = z.strictObject({ image: NameSchema });
/**
 * The path of an image's file.
 *
 * @internal
 */
export const ImageFileParams = z.strictObject({ image: NameSchema, part: z.enum(IMAGE_PARTS) });
/**
 * The path of a machine.
 *
 * @internal
 */
export const VmParams = z.strictObject({ vm: NameSchema });
/**
 * The path of a fleecing.
 *
 * @internal
 */
export const FleecingParams = z.strictObject({ vm: NameSchema, fleecing: NameSchema });
/**
 * The path of an export.
 *
 * @internal
 */
export const ExportParams = z.strictObject({
  export: z.string().regex(EXPORT_NAME_PATTERN, { error: "is not the name of an export" }),
});

/**
 * An image to be made.
 *
 * @internal
 */
export const NewImageSchema = z.strictObject({
  name: NameSchema,
  cmdline: CmdlineSchema.default("").describe("The kernel's command line"),
}).openapi("NewImage");

const ImageFileSchema = z.object({ sizeBytes: z.int(), sha256: z.string() });

/**
 * An image.
 *
 * @internal
 */
export const ImageSchema = z.object({
  name: z.string(),
  cmdline: z.string(),
  builtIn: z.boolean().describe("Belongs to the program: always there, can't be changed"),
  createdAt: z.iso.datetime(),
  files: z.partialRecord(z.enum(IMAGE_PARTS), ImageFileSchema),
}).openapi("Image");

/**
 * Whether a format has clusters, where their size is given.
 *
 * @internal
 */
export function canHaveClusters(format: string, clusterSizeBytes: number | undefined): boolean {
  return clusterSizeBytes === undefined || format === "qcow2";
}

/**
 * What is said where it has none.
 *
 * @internal
 */
export const NO_CLUSTERS = {
  error: "raw has no clusters: clusterSizeBytes needs format qcow2",
  path: ["clusterSizeBytes"],
};

const NewDiskSchema = z.strictObject({
  name: NameSchema,
  sizeBytes: bytes({ minimum: SECTOR_BYTES, maximum: limits.diskMaxBytes, multiple: SECTOR_BYTES })
    .optional()
    .describe("The disk takes only the room that is written to it"),
  readOnly: z.boolean().default(false),
  format: z.enum(["raw", "qcow2"]).optional()
    .describe("Without it: qcow2 with `backing`, else raw"),
  clusterSizeBytes: z.int().min(SECTOR_BYTES).max(CLUSTER_BYTES_MAX)
    .refine((size) => Number.isInteger(Math.log2(size)), { error: "must be a power of two" })
    .optional().describe("Of qcow2; 64 KiB unless given"),
  backing: DiskNameSchema.optional()
    .describe("A disk whose content it begins with, and which then stays as it is"),
  disk: NameSchema.optional()
    .describe("A disk that is there already (see Disks), which stays when the machine goes"),
}).refine(({ sizeBytes, backing, disk }) => Boolean(sizeBytes ?? backing ?? disk), {
  error: "needs sizeBytes, backing or disk",
  path: ["sizeBytes"],
}).refine(
  ({ format, clusterSizeBytes, backing }) =>
    canHaveClusters(format ?? (backing ? "qcow2" : "raw"), clusterSizeBytes),
  NO_CLUSTERS,
).openapi("NewDisk");

const AccelSchema = z.enum(["interpreter", "translator"]).describe(
  "How processors execute: instruction by instruction, or with hot code translated to WebAssembly",
);

/**
 * A machine to be made.
 *
 * @internal
 */
export const NewVmSchema = z.strictObject({
  name: NameSchema,
  image: NameSchema.describe("`demo` is always there"),
  memoryBytes: bytes({
    minimum: limits.memoryMinBytes,
    maximum: limits.memoryMaxBytes,
    multiple: MiB,
  }).default(DEFAULT_MEMORY_BYTES),
  harts: z.int().min(1).max(limits.hartCount).default(1).describe("Processors"),
  accel: AccelSchema.default("translator"),
  disks: z.array(NewDiskSchema).max(limits.diskCount)
    .refine((disks) => new Set(disks.map(({ name }) => name)).size === disks.length, {
      error: "two disks have one name",
    })
    .default([{ name: "disk0", sizeBytes: 64 * MiB, readOnly: false }])
    .describe("In the order in which the guest finds them; without it: one of 64 MiB, `disk0`"),
  start: z.boolean().default(true),
}).openapi("NewVm");

/**
 * A machine as it stands.
 *
 * @internal
 */
export const VmSchema = z.object({
  name: z.string(),
  state: z.enum([
    "creating",
    "starting",
    "running",
    "paused",
    "stopping",
    "stopped",
    "failed",
    "deleting",
  ]),
  since: z.iso.datetime().describe("When it came to this state"),
  failure: z.string().nullable().describe("Why it is `failed`"),
  exit: z.object({
    reason: z.enum(["shutdown", "reboot", "hostFault"]),
    code: z.int(),
  }).nullable().describe("How the guest ended last, if it ended by itself"),
  image: z.string(),
  memoryBytes: z.int(),
  harts: z.int(),
  accel: AccelSchema,
  translator: z.object({
    regions: z.int().describe("Pieces of translated code that exist"),
    moduleBytes: z.int().describe("WebAssembly of these"),
    made: z.int(),
    dropped: z.int().describe("Since they changed, grew, or had no room"),
    compileMs: z.int().describe("Time that harts waited for modules"),
    instructions: z.int().describe("Executed in translated code"),
    interpreted: z.int().describe("Executed by the interpreter"),
    timeMs: z.object({
      interpreter: z.int(),
      translated: z.int().describe("Told from a part of the entries into translated code"),
      making: z.int().describe("For translated code; compiling goes on in the background"),
    }).describe("Where the time of the harts went while they ran"),
    hops: z.int().describe("How often control went from one piece to another"),
    exits: z.object({
      jump: z.int().describe("Code that was not translated came next"),
      budget: z.int().describe("It was time to look around"),
      memory: z.int().describe("Access that faults, crosses pages or goes to a device"),
      csr: z.int(),
      float: z.int(),
      atomic: z.int(),
      trap: z.int().describe("ECALL, EBREAK, illegal instructions"),
      return: z.int().describe("MRET, SRET"),
      wait: z.int().describe("WFI"),
      fence: z.int().describe("FENCE.I, SFENCE.VMA and the like"),
      other: z.int(),
    }).describe("How often translated code was left: why, or for which instruction"),
  }).nullable().describe("Of all harts since the machine was opened; null without a translator"),
  disks: z.array(z.object({
    name: z.string(),
    disk: z.string().describe("The disk that it is: see Disks"),
    format: z.enum(["raw", "qcow2"]),
    sizeBytes: z.int(),
    readOnly: z.boolean(),
  })),
  qmp: z.string().nullable().describe("The unix socket of its monitor, while it is open"),
  checkpoints: z.array(z.string()).describe("Names of its checkpoints"),
  fleecings: z.array(z.string()).describe("Names of the fleecings that stand"),
  createdAt: z.iso.datetime(),
}).openapi("Vm");

/**
 * The query of a console's log.
 *
 * @internal
 */
export const LogQuery = z.strictObject({
  follow: z.enum(["", "1", "true", "0", "false"], { error: "must be true or false" }).optional()
    .transform((value) => value === "" || value === "1" || value === "true")
    .openapi({ type: "string" })
    .describe("Keep the answer open and send what the guest writes as it comes"),
});

/**
 * A profile to be taken.
 *
 * @internal
 */
export const NewProfileSchema = z.strictObject({
  seconds: z.number().min(0.1).max(limits.profileMs / 1000).default(10)
    .describe("How long to look; the answer comes then"),
}).openapi("NewProfile");

/**
 * A profile.
 *
 * @internal
 */
export const ProfileSchema = z.object({
  seconds: z.number().describe("Shorter than asked for where the machine was stopped"),
  samples: z.int().describe("Of all stacks: one for each millisecond that a hart ran"),
  lost: z.int().describe("Of which it is not known where the hart was"),
  stacks: z.array(z.object({
    mode: z.enum(["user", "supervisor", "machine"]),
    frames: z.array(z.string()).describe(
      "Guest addresses: where the hart was, then, in S mode with frame pointers, what calls " +
        "return to, innermost first",
    ),
    samples: z.int(),
  })).max(limits.profileStacks).describe("Those seen most first"),
}).openapi("Profile");

/**
 * A fleecing to be taken.
 *
 * @internal
 */
export const NewFleecingSchema = z.strictObject({
  name: NameSchema.optional().describe("Without it: the moment, in UTC"),
  disks: z.array(NameSchema).max(limits.diskCount)
    .refine((disks) => new Set(disks).size === disks.length, { error: "names a disk twice" })
    .default([]).describe("Frozen at one moment, all together; none named: all disks"),
  onCbwError: z.enum(["break-snapshot", "break-guest-write"]).default("break-snapshot")
    .describe("What a failed copy breaks: the view, or the guest's write"),
  cbwTimeoutSeconds: z.int().min(0).max(CBW_TIMEOUT_SECONDS_MAX).default(CBW_TIMEOUT_SECONDS)
    .describe("How long a guest write waits for its copy; 0: for ever"),
  minClusterSize: z.int().min(SECTOR_BYTES).max(limits.nbdPayloadBytes)
    .refine((size) => Number.isInteger(Math.log2(size)), { error: "must be a power of two" })
    .default(64 * 1024).describe("Copies are made in units of at least so many bytes"),
  bitmap: BitmapName.nullable().default(null)
    .describe("Only what this dirty bitmap of each disk marks is protected and can be read"),
  since: NameSchema.nullable().default(null)
    .describe(
      "A checkpoint or bitmap: only what changed since can be read, and is shown as " +
        "`qemu:dirty-bitmap:NAME`. A disk whose bitmap was lost is read as a whole: see " +
        "`incremental` of its export",
    ),
  checkpoint: NameSchema.nullable().default(null)
    .describe("A checkpoint that begins at the same moment: bitmaps that record from then on"),
  scheme: z.enum(["new", "old"]).default("new")
    .describe("`old`: the view is a qcow2 overlay of the disk; it can't be limited or discarded"),
  scratchMaxBytes: z.int().min(0).nullable().default(null)
    .describe("The largest size of all copies together; null: no limit but the file system's"),
  scratchFolder: z.string().regex(/^\//).max(PATH_CHARACTERS).nullable().default(null)
    .describe("A folder that the operator allowed, for the copies; null: the data folder's"),
  onScratchShort: z.enum(["warn", "refuse"]).default("warn")
    .describe("What to do where the copies may outgrow the room that there is: see `scratch`"),
  expiresInSeconds: z.int().min(1).max(EXPIRY_SECONDS_MAX).nullable().default(null)
    .describe("It ends by itself after so long, as a failure"),
}).openapi("NewFleecing");

/**
 * How a fleecing ended for its reader.
 *
 * @internal
 */
export const CompleteFleecingSchema = z.strictObject({
  result: z.enum(["success", "failure"]).describe(
    "`success`: the bitmap `since` goes. `failure`: what changed since the moment is merged back " +
      "into it, the new checkpoint goes, so that the next fleecing misses nothing",
  ),
}).openapi("CompleteFleecing");

/** Ranges of an export. */
const RangesSchema = z.array(z.strictObject({ offset: z.int().min(0), length: z.int().min(1) }))
  .min(1).max(limits.extentsPerAnswer);

/**
 * Parts of a fleecing that were read.
 *
 * @internal
 */
export const DiscardFleecingSchema = z.strictObject({
  disk: NameSchema.optional().describe("Needed where the fleecing has several"),
  ranges: RangesSchema.describe("Only whole clusters inside of a range go"),
}).openapi("DiscardFleecing");

/** One view of a disk, with its addresses. */
const ExportFields = {
  name: z.string(),
  vm: z.string(),
  fleecing: z.string(),
  disk: z.string(),
  sizeBytes: z.int(),
  createdAt: z.iso.datetime().describe("The moment of the view"),
  nbd: z.string().nullable().describe("NBD over TCP"),
  nbdUnix: z.string().nullable().describe("NBD over a unix socket"),
  websocket: z.string().describe("NBD in WebSocket frames"),
  content: z.string().describe("HTTP, with ranges"),
};

/**
 * An export with its addresses.
 *
 * @internal
 */
export const ExportSchema = z.object(ExportFields).openapi("Export");

/**
 * A fleecing with its figures.
 *
 * @internal
 */
export const FleecingSchema = z.object({
  name: z.string(),
  vm: z.string(),
  state: z.enum(["active", "broken"]),
  brokenBy: z.string().nullable().describe("The copy that failed; every read is refused since"),
  createdAt: z.iso.datetime(),
  onCbwError: z.enum(["break-snapshot", "break-guest-write"]),
  cbwTimeoutSeconds: z.int(),
  bitmap: z.string().nullable(),
  scheme: z.enum(["new", "old"]),
  since: z.string().nullable(),
  checkpoint: z.string().nullable(),
  expiresAt: z.iso.datetime().nullable().describe("When it ends by itself"),
  scratch: z.object({
    maxBytes: z.int().nullable(),
    usedBytes: z.int(),
    estimateBytes: z.int().describe("What may have to be copied at most, as of the start"),
    roomBytes: z.int().describe("What there was room for at the start"),
    warning: z.string().nullable().describe("The room may not be enough"),
  }),
  exports: z.array(z.object({
    ...ExportFields,
    incremental: z.object({
      isIncremental: z.boolean(),
      reason: z.string().nullable().describe("Why it is not: read the whole disk"),
    }).nullable().describe("What `since` came to, null where nothing was asked for"),
    clusterSizeBytes: z.int(),
    copiedBytes: z.int().describe("Copied aside because the guest was about to overwrite them"),
    clustersDone: z.int(),
    clustersTotal: z.int(),
    refusedReads: z.int().describe("Reads of areas that may not be read"),
    guestWaitMs: z.number().describe("How long guest writes waited for copies and for readers"),
    scratchUsedBytes: z.int(),
  })),
}).openapi("Fleecing");

/**
 * The query of a map.
 *
 * @internal
 */
export const ExtentsQuery = z.strictObject({
  context: z.enum(["allocation", "zero", "access", "dirty"]).default("allocation")
    .describe(
      "What the map shows: where data is (`zero` is another word for it), what may be read, or " +
        "what a dirty bitmap marks",
    ),
  bitmap: BitmapName.optional().describe("With context=dirty, where there are several"),
  offset: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(0),
  length: z.coerce.number().int().min(1).max(Number.MAX_SAFE_INTEGER).optional()
    .describe("Without it: up to the end"),
  limit: z.coerce.number().int().min(1).max(limits.extentsPerAnswer)
    .default(limits.extentsPerAnswer),
});

/**
 * A part of a map.
 *
 * @internal
 */
export const ExtentsSchema = z.object({
  extents: z.array(z.object({
    offset: z.int(),
    length: z.int(),
    hole: z.boolean().optional().describe("context=allocation, zero: takes no room"),
    zero: z.boolean().optional().describe("context=allocation, zero, dirty: reads as zeroes"),
    readable: z.boolean().optional().describe("context=access: may be read"),
    dirty: z.boolean().optional().describe("context=dirty: changed"),
  })),
  nextOffset: z.int().nullable().describe("Ask again from here; null at the end"),
}).openapi("Extents");

/**
 * A ticket.
 *
 * @internal
 */
export const TicketSchema = z.object({
  ticket: z.string(),
  protocol: z.string().describe("Offer it as a subprotocol beside `nbd`; it is not echoed"),
  expiresAt: z.iso.datetime(),
}).openapi("Ticket");

/**
 * What the service says about itself.
 *
 * @internal
 */
export const InfoSchema = z.object({
  name: z.literal("ovis"),
  version: z.string(),
  deno: z.string(),
  startedAt: z.iso.datetime(),
  limits: z.record(z.string(), z.number()),
}).openapi("Info");

/**
 * Whether it lives, or takes work.
 *
 * @internal
 */
export const HealthSchema = z.object({ status: z.string() }).openapi("Health");
