import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { needs } from "../support/clients.ts";
import { Folder, img, KiB, mixedDisk, qemuImgOk } from "./img_support.ts";

/** Bytes that are changed: mostly in the header, some in the tables behind it. */
const changes = fc.array(
  fc.tuple(
    fc.oneof(fc.nat(111), fc.nat(111), fc.nat(600), fc.nat(300 * KiB)),
    fc.nat(255),
  ),
  { minLength: 1, maxLength: 6 },
);

Deno.test({
  name: "ovis img answers with a message, whatever is wrong with an image",
  ...needs("qemu-img"),
  fn: async () => {
    await using folder = await Folder.make();
    const good = folder.file("good.qcow2");
    await qemuImgOk("convert", "-O", "qcow2", "-o", "cluster_size=4k", mixedDisk(folder), good);
    const bytes = await Deno.readFile(good);
    const bad = folder.file("bad.qcow2");
    const seed = Number(Deno.env.get("OVIS_FUZZ_SEED") ?? 1);
    const numRuns = Number(Deno.env.get("OVIS_FUZZ_RUNS") ?? 40);
    await fc.assert(
      fc.asyncProperty(changes, fc.nat(), async (list, cut) => {
        const copy = bytes.slice(0, cut % 3 === 0 ? cut % bytes.length : bytes.length);
        for (const [at, value] of list) copy[at] = value;
        await Deno.writeFile(bad, copy);
        for (const words of [["info"], ["map"], ["check"], ["measure"], ["snapshot", "-l"]]) {
          const { status, stderr } = await img(...words, "-f", "qcow2", bad);
          assert(status === 0 || stderr !== "", words.join(" "));
        }
        // What can't be read leaves no copy behind.
        const target = folder.file("target.raw");
        const { status } = await img("convert", "-f", "qcow2", bad, target);
        const isThere = await Deno.stat(target).then(() => true, () => false);
        assertEquals(isThere, status === 0);
        if (isThere) await Deno.remove(target);
      }),
      { seed, numRuns },
    );
  },
});

Deno.test("ovis img ends where images name each other as backing files", async () => {
  await using folder = await Folder.make();
  const [a, b] = [folder.file("a.qcow2"), folder.file("b.qcow2")];
  const over = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2"];
  await img(...over, "-b", b, a, "1M");
  await img(...over, "-b", a, b, "1M");
  for (const words of [["info", "--backing-chain", a], ["map", a], ["convert", a, `${a}.raw`]]) {
    const { status, stderr } = await img(...words);
    assertEquals(status, 1);
    assert(/loop|too (many|deep|long)|cycle|nest/i.test(stderr), stderr);
  }
});
