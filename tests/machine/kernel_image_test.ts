import { assertEquals, assertRejects } from "@std/assert";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { BootError, type BootErrorCode } from "../../src/machine/boot_error.ts";
import { type BootImage, planImage } from "../../src/machine/kernel_image.ts";
import { findProgram, needs } from "../support/clients.ts";
import { seededRandom } from "../support/nbd.ts";

const MiB = 1024 * 1024;
const RAM = 0x8000_0000;
const AREA = {
  file: "kernel" as const,
  gpa: RAM + 2 * MiB,
  ramStart: RAM,
  ramEnd: RAM + 32 * MiB,
};

/** A Linux Image: its header, then bytes that count. */
function createImage(
  options: { textOffset?: bigint; imageBytes?: bigint; length?: number } = {},
): Uint8Array<ArrayBuffer> {
  const { textOffset = 0x20_0000n, imageBytes = 0x1_0000n, length = 5000 } = options;
  const bytes = Uint8Array.from({ length }, (_, index) => index & 0xff);
  const view = new DataView(bytes.buffer);
  bytes.set([0x4d, 0x5a]);
  view.setBigUint64(8, textOffset, true);
  view.setBigUint64(16, imageBytes, true);
  view.setUint32(56, 0x05435352, true);
  return bytes;
}

function createZboot(
  payload: Uint8Array,
  options: { name?: string; claimedBytes?: number } = {},
): Uint8Array<ArrayBuffer> {
  const { name = "gzip", claimedBytes = payload.length } = options;
  const bytes = new Uint8Array(512 + payload.length);
  const view = new DataView(bytes.buffer);
  bytes.set(new TextEncoder().encode("MZ\0\0zimg"));
  view.setUint32(8, 512, true);
  view.setUint32(12, claimedBytes, true);
  bytes.set(new TextEncoder().encode(name), 24);
  bytes.set(payload, 512);
  return bytes;
}

interface TestSegment {
  virtual: bigint;
  physical: bigint;
  data: number[];
  memory: bigint;
}

/** An ELF file of these segments; `patch` lies about it afterwards. */
function createElf(
  segments: TestSegment[],
  options: { entry?: bigint; patch?: (view: DataView) => void } = {},
): Uint8Array<ArrayBuffer> {
  const dataOffset = 64 + 56 * segments.length;
  const total = segments.reduce((sum, { data }) => sum + data.length, dataOffset);
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 243, true);
  view.setBigUint64(24, options.entry ?? segments[0]?.virtual ?? 0n, true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, segments.length, true);
  let offset = dataOffset;
  segments.forEach((segment, index) => {
    const header = 64 + 56 * index;
    view.setUint32(header, 1, true);
    view.setBigUint64(header + 8, BigInt(offset), true);
    view.setBigUint64(header + 16, segment.virtual, true);
    view.setBigUint64(header + 24, segment.physical, true);
    view.setBigUint64(header + 32, BigInt(segment.data.length), true);
    view.setBigUint64(header + 40, segment.memory, true);
    bytes.set(segment.data, offset);
    offset += segment.data.length;
  });
  options.patch?.(view);
  return bytes;
}

const SEGMENT: TestSegment = {
  virtual: 0x8020_0000n,
  physical: 0x8020_0000n,
  data: [1, 2, 3, 4],
  memory: 100n,
};

function concat(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

async function assertRefused(
  bytes: Uint8Array<ArrayBuffer>,
  code: BootErrorCode,
  text: string,
): Promise<void> {
  const error = await assertRejects(() => planImage(bytes, AREA), BootError, text);
  assertEquals([error.code, error.file], [code, "kernel"]);
}

function assertIsImage(image: BootImage, expected: Uint8Array): void {
  assertEquals(image.entry, RAM + 0x20_0000);
  assertEquals(image.end, RAM + 0x21_0000);
  assertEquals(image.parts.map(({ gpa, memoryBytes }) => [gpa, memoryBytes]), [
    [RAM + 0x20_0000, 0x1_0000],
  ]);
  assertEquals(new Uint8Array(image.parts[0]?.bytes ?? []), expected);
}

Deno.test("planImage() places a Linux Image at its text offset, with room for its BSS", async () => {
  const bytes = createImage();
  assertIsImage(await planImage(bytes, AREA), bytes);
  const low = await planImage(createImage({ textOffset: 0n }), AREA);
  assertEquals(low.entry, AREA.gpa, "not over the firmware");
  const old = await planImage(createImage({ imageBytes: 0n }), AREA);
  assertEquals(old.end, AREA.gpa + 5000, "without a size in the header");
});

Deno.test("planImage() unpacks gzip, zstd and both inside EFI zboot", async () => {
  const bytes = createImage();
  const gzip = new Uint8Array(gzipSync(bytes));
  const zstd = new Uint8Array(zstdCompressSync(bytes));
  assertIsImage(await planImage(gzip, AREA), bytes);
  assertIsImage(await planImage(zstd, AREA), bytes);
  assertIsImage(await planImage(createZboot(gzip), AREA), bytes);
  // The kernel's build appends the size to all but gzip; the header does not count it.
  const sized = concat(zstd, new Uint8Array(4));
  const options = { name: "zstd", claimedBytes: zstd.length };
  assertIsImage(await planImage(createZboot(sized, options), AREA), bytes);
});

Deno.test({
  name: "planImage() unpacks xz, also inside EFI zboot",
  ...needs("xz"),
  fn: async () => {
    const bytes = createImage();
    for (const check of ["crc32", "crc64"]) {
      const child = new Deno.Command(findProgram("xz") ?? "xz", {
        args: ["-c", `--check=${check}`],
        stdin: "piped",
        stdout: "piped",
      }).spawn();
      const writer = child.stdin.getWriter();
      await writer.write(bytes);
      await writer.close();
      const xz = new Uint8Array((await child.output()).stdout);
      assertIsImage(await planImage(xz, AREA), bytes);
      assertIsImage(await planImage(createZboot(xz, { name: "xzkern" }), AREA), bytes);
      await assertRefused(xz.slice(0, xz.length - 40), "damaged", "damaged or truncated xz");
    }
  },
});

Deno.test("planImage() takes ELF segments at their physical addresses, the entry as a virtual one", async () => {
  const image = await planImage(
    createElf([
      { virtual: 0xffff_ffff_8000_0000n, physical: 0x8040_0000n, data: [1, 2, 3], memory: 0x3000n },
      { virtual: 0xffff_ffff_8000_4000n, physical: 0x8040_4000n, data: [], memory: 0x1000n },
    ], { entry: 0xffff_ffff_8000_0000n }),
    AREA,
  );
  assertEquals(image.entry, 0x8040_0000);
  assertEquals(image.end, 0x8040_5000);
  assertEquals(image.parts.map(({ gpa, memoryBytes }) => [gpa, memoryBytes]), [
    [0x8040_0000, 0x3000],
    [0x8040_4000, 0x1000],
  ]);
});

Deno.test("planImage() moves an ELF kernel that counts its addresses from zero", async () => {
  const image = await planImage(
    createElf([
      { virtual: 0xffff_0000n, physical: 0n, data: [1], memory: 0x1000n },
      { virtual: 0xffff_2000n, physical: 0x2000n, data: [2], memory: 0x1000n },
    ], { entry: 0xffff_2004n }),
    AREA,
  );
  assertEquals(image.parts.map(({ gpa }) => gpa), [AREA.gpa, AREA.gpa + 0x2000]);
  assertEquals(image.entry, AREA.gpa + 0x2004);
});

Deno.test("planImage() takes another binary as it is", async () => {
  const bytes = new Uint8Array([0x2a, 0x82, 0xae, 0x84, 0x93, 0x01]);
  const image = await planImage(bytes, AREA);
  assertEquals([image.entry, image.end], [AREA.gpa, AREA.gpa + 6]);
});

Deno.test("planImage() says what is wrong with what is no kernel", async () => {
  const text = new TextEncoder().encode("#!/bin/sh\necho hello\n\tworld\r\n");
  await assertRefused(text, "unknownFormat", "kernel: this is a text file");
  await assertRefused(new Uint8Array(gzipSync(text)), "unknownFormat", "this is a text file");
  await assertRefused(new Uint8Array(0), "unknownFormat", "the file is empty");
  const pe = new Uint8Array(200);
  pe.set([0x4d, 0x5a]);
  await assertRefused(pe, "unknownFormat", "an EFI program");
  const amd64 = createElf([SEGMENT], { patch: (view) => view.setUint16(18, 62, true) });
  await assertRefused(amd64, "unknownFormat", "not for 64-bit RISC-V");
  const object = createElf([SEGMENT], { patch: (view) => view.setUint16(16, 1, true) });
  await assertRefused(object, "unknownFormat", "not an executable one");
});

Deno.test("planImage() says what is wrong with damaged files", async () => {
  const gzip = new Uint8Array(gzipSync(createImage()));
  const zstd = new Uint8Array(zstdCompressSync(createImage()));
  await assertRefused(gzip.slice(0, 60), "damaged", "damaged or truncated gzip");
  await assertRefused(zstd.slice(0, 60), "damaged", "damaged or truncated zstd");
  const broken = gzip.slice();
  broken.fill(0xff, 20, 60);
  await assertRefused(broken, "damaged", "damaged or truncated gzip");
  await assertRefused(createZboot(gzip, { claimedBytes: 1e9 }), "damaged", "behind the end");
  await assertRefused(createZboot(gzip, { name: "lzo" }), "unsupportedCompression", '"lzo"');
  await assertRefused(createElf([]), "damaged", "nothing to load");
  await assertRefused(createElf([SEGMENT]).slice(0, 40), "damaged", "truncated ELF header");
  await assertRefused(createElf([SEGMENT], { entry: 0n }), "damaged", "entry point");
  const lies: [(view: DataView) => void, string][] = [
    [(view) => view.setBigUint64(32, 0xffff_ffff_ffff_ffffn, true), "behind the end"],
    [(view) => view.setBigUint64(32, 100n, true), "behind the end"],
    [(view) => view.setUint16(56, 0xffff, true), "make no sense"],
    [(view) => view.setUint16(54, 8, true), "make no sense"],
    [(view) => view.setBigUint64(64 + 8, 0x7fff_ffff_ffff_ffffn, true), "behind the end"],
    [(view) => view.setBigUint64(64 + 32, 101n, true), "behind the end"],
    [(view) => view.setBigUint64(64 + 40, 3n, true), "larger in the file"],
  ];
  for (const [patch, text] of lies) {
    await assertRefused(createElf([SEGMENT], { patch }), "damaged", text);
  }
});

Deno.test("planImage() lets nothing lie outside of RAM", async () => {
  await assertRefused(createImage({ imageBytes: BigInt(31 * MiB) }), "doesNotFit", "not inside");
  await assertRefused(createImage({ imageBytes: 2n ** 63n }), "doesNotFit", "not inside");
  await assertRefused(createImage({ textOffset: 2n ** 63n }), "doesNotFit", "not inside");
  const far = [0x8020_0000n + 2n ** 40n, 2n ** 64n - 1n, BigInt(AREA.ramEnd) - 99n];
  for (const physical of far) {
    await assertRefused(createElf([{ ...SEGMENT, physical }]), "doesNotFit", "not inside");
  }
  const huge = createElf([{ ...SEGMENT, memory: 2n ** 64n - 1n }]);
  await assertRefused(huge, "doesNotFit", "not inside");
  const below = createElf([SEGMENT, { ...SEGMENT, physical: 0n }]);
  await assertRefused(below, "doesNotFit", "not inside");
});

Deno.test("planImage() bounds what a compressed file may grow to", async () => {
  const bomb = new Uint8Array(gzipSync(new Uint8Array(33 * MiB)));
  await assertRefused(bomb, "doesNotFit", "larger than the machine's memory");
  const zstd = new Uint8Array(zstdCompressSync(new Uint8Array(33 * MiB)));
  await assertRefused(zstd, "doesNotFit", "larger than the machine's memory");
  let nested = createImage();
  for (let depth = 0; depth < 5; depth++) nested = new Uint8Array(gzipSync(nested));
  await assertRefused(nested, "unknownFormat", "too many times");
});

Deno.test("planImage() answers any file with a plan inside RAM or a BootError", async () => {
  const seed = Date.now() >>> 0;
  const random = seededRandom(seed);
  const originals = [
    createImage(),
    createElf([SEGMENT, { ...SEGMENT, physical: 0x8030_0000n }]),
    createZboot(new Uint8Array(gzipSync(createImage()))),
    new Uint8Array(zstdCompressSync(createImage())),
  ];
  let planned = 0;
  for (let step = 0; step < 3000; step++) {
    const bytes = (originals[step % originals.length] ?? createImage()).slice();
    const changes = 1 + Math.floor(random() * 4);
    for (let change = 0; change < changes; change++) {
      const at = Math.floor(random() * Math.min(bytes.length, 240));
      bytes[at] = random() < 0.3 ? 0xff : Math.floor(random() * 256);
    }
    const length = random() < 0.2 ? Math.floor(random() * bytes.length) : bytes.length;
    try {
      const image = await planImage(bytes.slice(0, length), AREA);
      planned++;
      for (const { gpa, memoryBytes, bytes: data } of image.parts) {
        const isInside = gpa >= RAM && gpa + memoryBytes <= AREA.ramEnd;
        assertEquals([isInside, data.length <= memoryBytes], [true, true], `seed ${seed}`);
      }
    } catch (error) {
      if (!(error instanceof BootError)) {
        throw new Error(`seed ${seed}, step ${step}`, { cause: error });
      }
    }
  }
  assertEquals(planned > 100, true, `only ${planned} were accepted (seed ${seed})`);
});
