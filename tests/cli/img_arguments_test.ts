import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { type CommandSyntax, parseArguments } from "../../src/cli/img/args.ts";
import { UsageError } from "../../src/cli/img/errors.ts";
import { formatSize, parseSize, sizeOf } from "../../src/cli/img/sizes.ts";
import { needs } from "../support/clients.ts";
import { asQemu, Folder, img, IS_QEMU_10, qemuImg, withoutPath } from "./img_support.ts";

const SYNTAX: CommandSyntax = {
  usage: "",
  options: [
    { name: "format", short: "f", value: "FMT" },
    { name: "force-share", short: "U" },
    { name: "progress", short: "p" },
    { name: "target-options", short: "o", value: "OPTS", aliases: ["options"] },
  ],
};

function parse(...words: string[]): unknown {
  const { options, operands } = parseArguments(words, SYNTAX);
  return [options.map(({ name, value }) => value === "" ? name : `${name}=${value}`), operands];
}

Deno.test("parseArguments() reads words as getopt_long does", () => {
  assertEquals(parse("a", "-f", "raw", "b"), [["format=raw"], ["a", "b"]]);
  assertEquals(parse("-pUfraw", "-o", "x=1", "-ox=2"), [
    ["progress", "force-share", "format=raw", "target-options=x=1", "target-options=x=2"],
    [],
  ]);
  assertEquals(parse("--format=raw", "--format", "qcow2", "--prog"), [
    ["format=raw", "format=qcow2", "progress"],
    [],
  ]);
  assertEquals(parse("--options=x", "--", "-f", "--progress"), [
    ["target-options=x"],
    ["-f", "--progress"],
  ]);
  assertEquals(parse("-", "-f", "-"), [["format=-"], ["-"]]);
});

Deno.test("parseArguments() says what is wrong in getopt's words", () => {
  const wrong: [string[], string][] = [
    [["-x"], "invalid option -- 'x'"],
    [["-px"], "invalid option -- 'x'"],
    [["-f"], "option requires an argument -- 'f'"],
    [["--format"], "option '--format' requires an argument"],
    [["--progress=1"], "option '--progress' doesn't allow an argument"],
    [["--nonsense"], "unrecognized option '--nonsense'"],
    [["--fo"], "option '--fo' is ambiguous; possibilities: '--format' '--force-share'"],
  ];
  for (const [words, message] of wrong) {
    assertThrows(() => parseArguments(words, SYNTAX), UsageError, message);
  }
});

Deno.test("parseArguments() never loses a word, whatever the words are", () => {
  fc.assert(fc.property(fc.array(fc.stringMatching(/^-{0,2}[a-zU=-]{0,6}$/)), (words) => {
    try {
      const { operands } = parseArguments(words, SYNTAX);
      const plain = words.filter((word) => !word.startsWith("-"));
      return operands.length <= words.length && plain.length >= 0;
    } catch (error) {
      return error instanceof UsageError;
    }
  }));
});

Deno.test("sizes are read with QEMU's suffixes, and bounded", () => {
  assertEquals(["1", "1k", "1.5K", "64G", "0x10", "3b", "+2M"].map(sizeOf), [
    1n,
    1024n,
    1536n,
    68719476736n,
    16n,
    3n,
    2097152n,
  ]);
  for (const wrong of ["", "k", "1.5", "1e3", "1Z", "1kk", "0x", "10 M"]) {
    assertEquals(sizeOf(wrong), null, wrong);
    assertThrows(() => parseSize(wrong, { name: "x" }), Error, `Invalid x specified: '${wrong}'.`);
  }
  assertThrows(
    () => parseSize("8E", { name: "image size" }),
    Error,
    "Invalid image size specified. Must be between 0 and 9223372036854775807.",
  );
  assertThrows(() => parseSize("-1", { name: "x", max: 9 }), Error, "Must be between 0 and 9.");
});

Deno.test("sizes are shown as QEMU shows them", () => {
  const shown = [
    0,
    512,
    999,
    1000,
    1024,
    1536,
    100352,
    1024000,
    2 ** 20,
    2 ** 36,
    123456789504,
    197120,
  ]
    .map(formatSize);
  assertEquals(shown, [
    "0 B",
    "512 B",
    "999 B",
    "0.977 KiB",
    "1 KiB",
    "1.5 KiB",
    "98 KiB",
    "0.977 MiB",
    "1 MiB",
    "64 GiB",
    "115 GiB",
    "192 KiB",
  ]);
});

Deno.test({
  name: "wrong command lines get qemu-img's messages and status",
  // Earlier versions say the same things in other words.
  ignore: !IS_QEMU_10 || needs("qemu-img").ignore,
  fn: async () => {
    await using folder = await Folder.make();
    const a = folder.raw("a.raw", 1024, []);
    const b = folder.file("b.raw");
    const lines: string[][] = [
      [],
      ["frob"],
      ["info"],
      ["info", a, a],
      ["info", folder.file("missing")],
      ["info", "--output=xml", a],
      ["info", "-f", "qcow2", a],
      ["info", "--image-opts", "foo=x"],
      ["check", "-r", "foo", a],
      ["create", b, "10Z"],
      ["create", b, "8E"],
      ["create", "-f", "foo", b, "1M"],
      ["create", "-f", "qcow2", "-o", "foo=1", b, "1M"],
      ["create", "-f", "qcow2", b],
      ["create", "-f", "raw", "-b", a, b, "1M"],
      ["create", "-f", "qcow2", "-b", a, b],
      ["create", "-f", "qcow2", "-b", folder.file("missing"), "-F", "raw", b],
      ["create", "-f", "qcow2", "-o", "size=3M", b, "1M"],
      ["create", "-f", "qcow2", "-b", b, "-F", "raw", b],
      ["create", "-f", "qcow2", "-F", "raw", b, "1M"],
      ["create", "-f", "qcow2", "-o", "preallocation=foo", b, "1M"],
      ["create", "-f", "qcow2", "-o", "cluster_size=foo", b, "1M"],
      ["create", "-f", "qcow2", "-o", "lazy_refcounts=maybe", b, "1M"],
      ["convert", a],
      ["convert", "-S", "100", a, b],
      ["convert", "-S", "64M", a, b],
      ["convert", "-m", "17", a, b],
      ["convert", "-r", "a", a, b],
      ["convert", "-t", "foo", a, b],
      ["convert", "-O", "foo", a, b],
      ["convert", "-c", "-O", "raw", a, b],
      ["convert", "-c", "-C", "-O", "qcow2", a, b],
      ["convert", "--target-is-zero", a, b],
      ["convert", "--skip-broken-bitmaps", a, b],
      ["convert", "-n", a, folder.file("missing")],
      ["convert", "-l", "nosuch", a, b],
      ["convert", "-O", "qcow2", "-o", "cluster_size=3k", a, b],
      ["convert", a, folder.file("no/such/b")],
      ["convert", "-o", "help", a],
      ["compare", a],
      ["compare", a, folder.file("missing")],
      ["measure"],
      ["measure", "-f", "raw", "--size", "1G"],
      ["measure", "--size", "1G", a],
      ["measure", "-O", "foo", "--size", "1G"],
      ["measure", "-O", "qcow2", "-o", "foo=1", "--size", "1G"],
      ["resize", "-f", "raw", a, "1M", "2M"],
      ["resize", "-f", "raw", a, "-1G"],
      ["resize", "-f", "raw", a, "512"],
      ["resize", "-f", "raw", "--preallocation=foo", a, "+1M"],
      ["resize", "-f", "raw", "--preallocation=metadata", a, "+1M"],
      ["rebase", a],
      ["commit", "-f", "raw", a],
      ["snapshot", "-l", "-c", "x", a],
      ["snapshot", "-f", "raw", "-c", "x", a],
      ["snapshot", "-f", "raw", "-d", "x", a],
      ["bitmap", a],
      ["bitmap", "--add", a],
      ["bitmap", "-g", "4k", "--clear", a, "b"],
      ["dd", `if=${a}`],
      ["dd", `if=${a}`, `of=${b}`, "bs=0"],
      ["dd", `if=${a}`, `of=${b}`, "foo=3"],
      ["dd", "-O", "foo", `if=${a}`, `of=${b}`],
      ["bench", "-d", "0", a],
      ["bench", "-s", "5G", a],
      ["bench", "--flush-interval", "100", a],
      ["bench", "-w", "--flush-interval", "2", "-f", "raw", a],
    ];
    const [mine, theirs]: [unknown[], unknown[]] = [[], []];
    for (const line of lines) {
      const ours = await img(...line);
      const qemus = await qemuImg(...line);
      mine.push({ line, status: ours.status, stderr: asQemu(ours.stderr) });
      theirs.push({ line, status: qemus.status, stderr: withoutPath(qemus.stderr) });
    }
    assertEquals(mine, theirs);
  },
});
