// `ovis nbd` as people run it, beside the tools whose work it does.
import { assert, assertEquals } from "@std/assert";
import { makeCertificates } from "../support/certificates.ts";
import { findProgram, needs } from "../support/clients.ts";
import { pattern } from "../support/nbd.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
const MiB = 1024 * 1024;

interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

async function run(program: string, args: string[]): Promise<Ran> {
  const command = new Deno.Command(findProgram(program) ?? program, { args });
  const { code, stdout, stderr } = await command.output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

function ovis(...args: string[]): Promise<Ran> {
  return run(Deno.execPath(), ["run", "-P=ovis", "--no-check", MAIN, "nbd", ...args]);
}

/** What a successful run printed. */
async function output(running: Promise<Ran>): Promise<string> {
  const { code, stdout, stderr } = await running;
  assertEquals(code, 0, `${stdout}${stderr}`);
  return stdout;
}

/** `ovis nbd serve`, up to its line, until the action has ended; then a SIGTERM, unless --once. */
async function serving(
  args: string[],
  action: (uri: string) => Promise<void>,
): Promise<void> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-P=ovis", "--no-check", MAIN, "nbd", "serve", ...args],
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let hasEnded = false;
  try {
    while (!text.includes("\n")) {
      const { done, value } = await lines.read();
      assert(!done, `the server ended: ${text}`);
      text += value;
    }
    const uri = /serving (\S+) /.exec(text)?.[1] ?? "";
    await action(uri);
    // With --once the last client's leaving ends it.
    hasEnded = args.includes("--once");
  } finally {
    if (!hasEnded) child.kill("SIGTERM");
    await lines.cancel();
    const { code } = await child.status;
    assertEquals(code, 0);
  }
}

async function inFolder(action: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await action(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** 4 MiB and a bit: pattern, a hole of 1 MiB at 1 MiB, pattern. */
function disk(): Uint8Array<ArrayBuffer> {
  const bytes = pattern(4 * MiB + 100);
  bytes.fill(0, MiB, 2 * MiB);
  return bytes;
}

/** Writes a file whose zeroes are a hole. */
async function writeSparse(path: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  using file = await Deno.open(path, { create: true, write: true });
  await file.truncate(bytes.length);
  await file.write(bytes.subarray(0, MiB));
  await file.seek(2 * MiB, Deno.SeekMode.Start);
  for (let at = 2 * MiB; at < bytes.length;) at += await file.write(bytes.subarray(at));
}

Deno.test({
  name: "ovis nbd info and map say what nbdinfo says",
  ...needs("nbdinfo"),
  fn: () =>
    inFolder(async (folder) => {
      await writeSparse(`${folder}/disk`, disk());
      const args = ["--socket", `${folder}/s`, "-f", "raw", "-r", "-x", "name", "-D", "a disk"];
      await serving([...args, `${folder}/disk`], async (uri) => {
        assertEquals(uri, `nbd+unix:///name?socket=${folder}/s`);
        const theirs = JSON.parse(await output(run("nbdinfo", ["--json", uri])));
        const ours = JSON.parse(await output(ovis("info", "--json", uri)));
        assertEquals(ours.extended, true);
        const [their] = theirs.exports;
        const [our] = ours.exports;
        delete their.content;
        assertEquals(our, their);
        const text = (await output(run("nbdinfo", [uri]))).split("\n").filter((line) =>
          !/^protocol|content:/.test(line)
        );
        const lines = (await output(ovis("info", uri))).split("\n");
        for (const line of text) assert(lines.includes(line), `${line}\n${lines.join("\n")}`);
        assertEquals((await output(ovis("info", "--size", uri))).trim(), `${4 * MiB + 100}`);
        assert((await output(ovis("info", "--list", uri))).includes('export="name":'));
        for (const args of [["--map"], ["--map", "--json"], ["--map", "--totals"]]) {
          const expected = await output(run("nbdinfo", [...args, uri]));
          const printed = await output(ovis("map", ...args.slice(1), uri));
          if (args.includes("--json")) assertEquals(JSON.parse(printed), JSON.parse(expected));
          else assertEquals(printed, expected);
        }
        const missing = await ovis("map", "--context", "x-no:such", uri);
        assertEquals(missing.code, 1);
        assert(missing.stderr.includes('does not support metadata context "x-no:such"'));
      });
    }),
});

Deno.test("ovis nbd copy copies both ways, and keeps holes", () =>
  inFolder(async (folder) => {
    const bytes = disk();
    await writeSparse(`${folder}/disk`, bytes);
    await Deno.writeFile(`${folder}/target`, new Uint8Array(bytes.length).fill(7));
    const target = ["--socket", `${folder}/t`, "-f", "raw", `${folder}/target`];
    await serving(["--port", "0", "-f", "raw", "-r", `${folder}/disk`], async (uri) => {
      await output(ovis("copy", uri, `${folder}/copy`));
      assertEquals(await Deno.readFile(`${folder}/copy`), bytes);
      const { blocks } = await Deno.stat(`${folder}/copy`);
      assert((blocks ?? 0) * 512 <= 3 * MiB + 65536, `${blocks} blocks`);
      await output(ovis("copy", uri, "null:"));
      await serving(target, async (targetUri) => {
        await output(ovis("copy", "--flush", "--connections", "2", uri, targetUri));
        assertEquals(await Deno.readFile(`${folder}/target`), bytes);
        await Deno.truncate(`${folder}/disk`, 4 * MiB);
        await output(ovis("copy", "--allocated", `${folder}/disk`, targetUri));
        assertEquals(await Deno.readFile(`${folder}/target`), bytes);
      });
      const refused = await ovis("copy", uri, `${folder}/none/copy`);
      assertEquals(refused.code, 1);
    });
    const { code, stderr } = await ovis("copy", `${folder}/missing`, "null:");
    assertEquals(code, 1);
    assert(stderr.includes("missing"), stderr);
  }));

Deno.test({
  name: "ovis nbd serve shows a part, ends with its last client, and keeps read-only so",
  ...needs("nbdinfo", "nbdcopy", "qemu-io", "sfdisk"),
  fn: () =>
    inFolder(async (folder) => {
      const path = `${folder}/disk`;
      await Deno.writeFile(path, pattern(4 * MiB));
      const script = "label: gpt\nstart=1MiB, size=1MiB\nstart=2MiB, size=512KiB\n";
      const child = new Deno.Command("sfdisk", {
        args: ["-q", path],
        stdin: "piped",
        stdout: "null",
        stderr: "null",
      }).spawn();
      const writer = child.stdin.getWriter();
      await writer.write(new TextEncoder().encode(script));
      await writer.close();
      assert((await child.status).success);
      const socket = `${folder}/s`;
      const args = ["--socket", socket, "-f", "raw", "--once"];
      await serving([...args, "--partition", "2", path], async (uri) => {
        await output(run("nbdcopy", [uri, `${folder}/part`]));
      });
      const all = await Deno.readFile(path);
      assertEquals(await Deno.readFile(`${folder}/part`), all.slice(2 * MiB, 2.5 * MiB));
      await serving([...args, "-r", "--offset", "3M", path], async (uri) => {
        const { code, stdout, stderr } = await run("qemu-io", ["-f", "raw", "-c", "w 0 512", uri]);
        assert(code !== 0, `${stdout}${stderr}`);
      });
      const { code, stderr } = await ovis("serve", "--partition", "9", "-f", "raw", path);
      assertEquals(code, 1);
      assert(stderr.includes("there is no partition 9, but 1, 2"), stderr);
      assertEquals(await Deno.stat(socket).catch(() => null), null);
    }),
});

Deno.test({
  name: "ovis nbd serve speaks TLS, and ovis nbd copy too",
  ...needs("openssl", "nbdcopy"),
  fn: () =>
    inFolder(async (folder) => {
      await using certificates = await makeCertificates();
      const { directory } = certificates;
      await Deno.writeFile(`${folder}/disk`, disk());
      const tls = ["--tls", "required", "--tls-certificates", directory, "--tls-verify-peer"];
      await serving(["--port", "0", "-f", "raw", ...tls, `${folder}/disk`], async (uri) => {
        assert(uri.startsWith("nbds://127.0.0.1:"), uri);
        const own = ["--tls-certificates", directory, "--tls-hostname", "localhost"];
        await output(ovis("copy", ...own, uri, `${folder}/ours`));
        assertEquals(await Deno.readFile(`${folder}/ours`), disk());
        assert(
          (await output(ovis("info", ...own, uri))).startsWith("protocol: newstyle-fixed with"),
        );
        const named = uri.replace("127.0.0.1", "localhost");
        await output(
          run("nbdcopy", [`${named}/?tls-certificates=${directory}`, `${folder}/theirs`]),
        );
        assertEquals(await Deno.readFile(`${folder}/theirs`), disk());
        const plain = await ovis("info", uri.replace("nbds:", "nbd:"));
        assert(plain.stderr.includes("STARTTLS first"), plain.stderr);
      });
    }),
});
