/**
 * The qcow2 header: every field out of bounds, extensions, and that what is read is written again.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import fc from "fast-check";
import { BlockError, type BlockErrorCode } from "../../../src/block/errors.ts";
import {
  EXTENSION_BACKING_FORMAT,
  EXTENSION_FEATURE_NAMES,
  HEADER_BYTES,
} from "../../../src/block/qcow2/format.ts";
import {
  encodeQcow2Header,
  parseQcow2Header,
  type Qcow2Header,
} from "../../../src/block/qcow2/header.ts";
import { findExtension, withExtension } from "../../../src/block/qcow2/header_extensions.ts";
import { assertFails } from "../support.ts";

const CLUSTER = 65536;

/** A good header of a disk of 64 MiB, as a file begins. */
function goodHeader(change: Partial<Qcow2Header> = {}): Uint8Array {
  const bytes = new Uint8Array(CLUSTER);
  bytes.set(encodeQcow2Header({ ...parsed(), ...change }));
  return bytes;
}

function parsed(): Qcow2Header {
  return {
    version: 3,
    backingFile: null,
    clusterBits: 16,
    sizeBytes: 64 * 1024 * 1024,
    cryptMethod: 0,
    l1Size: 1,
    l1TableOffset: 3 * CLUSTER,
    refcountTableOffset: CLUSTER,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    refcountOrder: 4,
    compressionType: "zlib",
    unknownFields: new Uint8Array(0),
    extensions: [],
  };
}

type Patch = readonly [offset: number, bytes: 1 | 4 | 8, value: number | bigint];

function patched(...patches: Patch[]): Uint8Array {
  const bytes = goodHeader();
  const view = new DataView(bytes.buffer);
  for (const [offset, width, value] of patches) {
    if (width === 1) view.setUint8(offset, Number(value));
    else if (width === 4) view.setUint32(offset, Number(value));
    else view.setBigUint64(offset, BigInt(value));
  }
  return bytes;
}

const BAD: readonly [string, Patch[], BlockErrorCode, string][] = [
  ["magic", [[0, 4, 0x51464900]], "EINVAL", "Image is not in qcow2 format"],
  ["version 1", [[4, 4, 1]], "ENOTSUP", "Unsupported qcow2 version 1"],
  ["version 4", [[4, 4, 4]], "ENOTSUP", "Unsupported qcow2 version 4"],
  ["cluster 8", [[20, 4, 8]], "EINVAL", "Unsupported cluster size: 2^8"],
  ["cluster 22", [[20, 4, 22]], "EINVAL", "Unsupported cluster size: 2^22"],
  ["cluster huge", [[20, 4, 0xffffffff]], "EINVAL", "Unsupported cluster size: 2^4294967295"],
  ["short header", [[100, 4, 103]], "EINVAL", "qcow2 header too short"],
  ["long header", [[100, 4, CLUSTER + 1]], "EINVAL", "qcow2 header exceeds cluster size"],
  ["backing offset", [[8, 8, CLUSTER + 1]], "EINVAL", "Invalid backing file offset"],
  ["backing offset", [[8, 8, 2n ** 64n - 1n]], "EINVAL", "Invalid backing file offset"],
  ["backing name", [[8, 8, 4096], [16, 4, 1024]], "EINVAL", "Backing file name too long"],
  [
    "backing name past the cluster",
    [[8, 8, CLUSTER - 5], [16, 4, 6]],
    "EINVAL",
    "Backing file name too long",
  ],
  ["crypt AES", [[32, 4, 1]], "ENOTSUP", "AES-CBC encrypted qcow2 images are not supported"],
  ["crypt LUKS", [[32, 4, 2]], "ENOTSUP", "LUKS encrypted qcow2 images are not supported"],
  ["crypt 3", [[32, 4, 3]], "EINVAL", "Unsupported encryption method 3"],
  ["size", [[24, 8, 2n ** 63n]], "EFBIG", "Image is too big"],
  ["size beyond L1", [[24, 8, 2 ** 30]], "EINVAL", "L1 table is too small"],
  ["L1 size", [[36, 4, 2 ** 22 + 1]], "EFBIG", "Active L1 table too large"],
  ["L1 size huge", [[36, 4, 0xffffffff]], "EFBIG", "Active L1 table too large"],
  ["L1 offset", [[40, 8, 3 * CLUSTER + 512]], "EINVAL", "Active L1 table offset invalid"],
  ["L1 offset huge", [[40, 8, 2n ** 64n - 65536n]], "EINVAL", "Active L1 table offset invalid"],
  ["refcount table offset", [[48, 8, 512]], "EINVAL", "Reference count table offset invalid"],
  ["refcount table size", [[56, 4, 129]], "EFBIG", "Reference count table too large"],
  ["no refcount table", [[56, 4, 0]], "EINVAL", "Image does not contain a reference count table"],
  ["snapshot offset", [[60, 4, 1], [64, 8, 1]], "EINVAL", "Snapshot table offset invalid"],
  ["snapshots", [[60, 4, 65537]], "EFBIG", "Snapshot table too large"],
  [
    "refcount width",
    [[96, 4, 7]],
    "EINVAL",
    "Reference count entry width too large; may not exceed 64 bits",
  ],
  ["compression", [[104, 1, 2]], "ENOTSUP", "qcow2: unknown compression type: 2"],
  [
    "compression bit missing",
    [[104, 1, 1]],
    "EINVAL",
    "qcow2: Compression type incompatible feature bit must be set",
  ],
  [
    "compression bit without need",
    [[72, 8, 8]],
    "EINVAL",
    "qcow2: Compression type incompatible feature bit must not be set",
  ],
  [
    "unknown features",
    [[72, 8, 0x60]],
    "ENOTSUP",
    "Unsupported qcow2 feature(s): Unknown incompatible feature: 60",
  ],
  [
    "subclusters too small",
    [[20, 4, 12], [72, 8, 16], [24, 8, 0]],
    "EINVAL",
    "Unsupported subcluster size: 128",
  ],
  ["extension", [[HEADER_BYTES + 4, 4, CLUSTER]], "EINVAL", "Header extension too large"],
  [
    "backing format",
    [[HEADER_BYTES, 4, EXTENSION_BACKING_FORMAT], [HEADER_BYTES + 4, 4, 16]],
    "EINVAL",
    "ERROR: ext_backing_format: len=16 too large (>=16)",
  ],
];

for (const [name, patches, code, message] of BAD) {
  Deno.test(`parseQcow2Header() refuses, as QEMU does: ${name}`, async () => {
    await assertFails(() => parseQcow2Header(patched(...patches)), code, message);
  });
}

Deno.test("parseQcow2Header() names unknown features by the image's own table", async () => {
  const bytes = goodHeader();
  // Entry 1 of the table: "corrupt bit" becomes a name for bit 7.
  const entry = HEADER_BYTES + 8 + 48;
  bytes[entry + 1] = 7;
  bytes.set(new TextEncoder().encode("warp drive\0"), entry + 2);
  bytes[79] = 0x80;
  await assertFails(
    () => parseQcow2Header(bytes),
    "ENOTSUP",
    "Unsupported qcow2 feature(s): warp drive",
  );
});

Deno.test("parseQcow2Header() refuses a file that ends too early", async () => {
  for (const length of [0, 3, 71, 100, 111]) {
    await assertFails(() => parseQcow2Header(goodHeader().subarray(0, length)), "EINVAL", /./);
  }
});

Deno.test("encodeQcow2Header() writes what parseQcow2Header() reads", () => {
  const bytes = new TextEncoder();
  const variants: Partial<Qcow2Header>[] = [
    {},
    { version: 2 },
    { backingFile: "a/b \u00e4.img" },
    { version: 2, backingFile: "x" },
    { incompatibleFeatures: 8n, compressionType: "zstd" },
    { incompatibleFeatures: 0x17n, compatibleFeatures: 0xff01n, autoclearFeatures: 2n ** 63n },
    { unknownFields: new Uint8Array(24).fill(9) },
    { extensions: [{ type: 0x12345678, data: bytes.encode("unknown") }] },
    { extensions: [{ type: EXTENSION_BACKING_FORMAT, data: bytes.encode("raw") }] },
    { snapshotCount: 3, snapshotsOffset: 9 * CLUSTER, refcountOrder: 6 },
  ];
  for (const variant of variants) {
    const header = { ...parsed(), ...variant };
    const { extensions, ...rest } = parseQcow2Header(goodHeader(variant));
    const { extensions: expected, ...fields } = header;
    assertEquals(rest, fields);
    const known = extensions.filter(({ type }) => type !== EXTENSION_FEATURE_NAMES);
    assertEquals(known, expected);
    assertEquals(known.length !== extensions.length, header.version === 3);
  }
});

Deno.test("encodeQcow2Header() leaves feature names out where there is no room, then fails", async () => {
  const header = { ...parsed(), clusterBits: 13, backingFile: "x".repeat(1000) };
  header.extensions = [{ type: 0x1234, data: new Uint8Array(6800) }];
  const bytes = new Uint8Array(8192);
  bytes.set(encodeQcow2Header(header));
  const again = parseQcow2Header(patchSize(bytes));
  assertEquals(again.backingFile, header.backingFile);
  assertEquals(findExtension(again.extensions, EXTENSION_FEATURE_NAMES), undefined);
  header.extensions = [{ type: 0x1234, data: new Uint8Array(7200) }];
  await assertFails(() => encodeQcow2Header(header), "ENOSPC", /no room/);
});

/** A size that fits small clusters. */
function patchSize(bytes: Uint8Array): Uint8Array {
  new DataView(bytes.buffer).setBigUint64(24, 0n);
  return bytes;
}

Deno.test("withExtension() replaces, adds and removes one extension", () => {
  const list = [{ type: 1, data: new Uint8Array(1) }, { type: 2, data: new Uint8Array(2) }];
  const types = (extensions: { type: number }[]) => extensions.map(({ type }) => type);
  assertEquals(types(withExtension(list, 1, new Uint8Array(9))), [1, 2]);
  assertEquals(withExtension(list, 1, new Uint8Array(9))[0]?.data.length, 9);
  assertEquals(types(withExtension(list, 3, new Uint8Array(9))), [1, 2, 3]);
  assertEquals(types(withExtension(list, 1, null)), [2]);
});

Deno.test("parseQcow2Header() of random changes fails with a BlockError, or is within bounds", () => {
  const good = goodHeader({ backingFile: "base", autoclearFeatures: 1n });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat({ max: 560 }), fc.nat({ max: 255 })), {
        minLength: 1,
        maxLength: 6,
      }),
      (changes) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at] = value;
        let header: Qcow2Header;
        try {
          header = parseQcow2Header(bytes);
        } catch (error) {
          if (!(error instanceof BlockError)) throw error;
          assertNotEquals(error.message, "");
          return;
        }
        assert(header.l1Size * 8 <= 32 * 1024 * 1024);
        assert(header.l1TableOffset % 2 ** header.clusterBits === 0);
        assert(header.refcountTableClusters * 2 ** header.clusterBits <= 8 * 1024 * 1024);
        assert(Number.isSafeInteger(header.sizeBytes));
        encodeQcow2Header(header);
      },
    ),
    { numRuns: 2000 },
  );
});
