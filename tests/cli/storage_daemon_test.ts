/**
 * `ovis storage-daemon` as a process; where a QEMU 10 storage daemon is at hand, the same scripts
 * against both.
 *
 * @module
 */

import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { parseOptions } from "../../src/cli/storage_daemon_options.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { needs } from "../support/clients.ts";
import { findQemu10 } from "../support/qemu_storage_daemon.ts";
import { QmpSide } from "../support/qmp_sides.ts";

const MAIN = new URL("../../main.ts", import.meta.url).pathname;
const OURS = [Deno.execPath(), "run", "--quiet", "-P=ovis", "--no-check", MAIN, "storage-daemon"];
const KiB = 1024;
const MiB = 1024 * KiB;

const qemu = await findQemu10();
const programs: [string, string[]][] = [
  ["ovis storage-daemon", OURS],
  ...(qemu === undefined ? [] : [["qemu-storage-daemon", [qemu]] as [string, string[]]]),
];
if (qemu === undefined) {
  // deno-lint-ignore no-console
  console.log("client not installed: skipped (qemu-storage-daemon 10: see OVIS_QEMU10_QSD)");
}

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end. */
async function run(program: readonly string[], args: string[], input = ""): Promise<Ended> {
  const [command = "", ...before] = program;
  const child = new Deno.Command(command, {
    args: [...before, ...args],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input)).catch(() => {});
  await writer.close().catch(() => {});
  const { code, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

async function withFolder(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-daemon-" });
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A daemon that has started: its pid file is there. */
async function start(
  program: readonly string[],
  folder: string,
  args: string[],
): Promise<Deno.ChildProcess> {
  const [command = "", ...before] = program;
  const child = new Deno.Command(command, {
    args: [...before, ...args, "--pidfile", `${folder}/pid`],
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  for (;;) {
    if (await exists(`${folder}/pid`)) return child;
    const ended = await Promise.race([
      child.status,
      new Promise<undefined>((resolve) => setTimeout(resolve, 20, undefined)),
    ]);
    if (ended !== undefined) throw new Error("the daemon did not start");
  }
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function makeFile(path: string, sizeBytes: number): Promise<void> {
  await Deno.writeFile(path, new Uint8Array(0));
  await Deno.truncate(path, sizeBytes);
}

Deno.test("parseOptions() keeps the order and understands getopt's ways", () => {
  assertEquals(
    parseOptions(["--blockdev", "a", "--export=b=c", "--blockd", "d", "-V", "--mon", "m"]),
    [
      { name: "blockdev", value: "a" },
      { name: "export", value: "b=c" },
      { name: "blockdev", value: "d" },
      { name: "version", value: "" },
      { name: "monitor", value: "m" },
    ],
  );
  assertThrows(() => parseOptions(["x"]), Error, "Unexpected argument: x");
  assertThrows(() => parseOptions(["--nope"]), Error, "unrecognized option '--nope'");
  assertThrows(() => parseOptions(["--blockdev"]), Error, "requires an argument");
  assertThrows(() => parseOptions(["--help=x"]), Error, "doesn't allow an argument");
});

for (const [name, program] of programs) {
  Deno.test(`${name}: nodes, exports and a monitor from the command line, until SIGTERM`, () =>
    withFolder(async (folder) => {
      await makeFile(`${folder}/a,b`, 4 * MiB);
      await makeFile(`${folder}/plain`, MiB);
      const child = await start(program, folder, [
        "--blockdev",
        `driver=file,node-name=f,filename=${folder}/a,,b,discard=unmap`,
        "--blockdev",
        '{"driver": "raw", "node-name": "d", "file": "f", "discard": "unmap"}',
        "--blockdev",
        `raw,node-name=p,read-only=on,file.driver=file,file.filename=${folder}/plain`,
        "--object",
        "throttle-group,id=g,limits.bps-total=100000000",
        "--blockdev",
        "throttle,node-name=t,throttle-group=g,file=d",
        "--nbd-server",
        `addr.type=unix,addr.path=${folder}/nbd,max-connections=5`,
        "--export",
        "nbd,id=e,node-name=t,name=disk,writable=on",
        "--export",
        '{"type": "nbd", "id": "e2", "node-name": "p"}',
        "--chardev",
        `socket,id=c,path=${folder}/qmp,server,nowait`,
        "--monitor",
        "c,pretty=off",
      ]);
      const side = new QmpSide(
        await Deno.connect({ path: `${folder}/qmp`, transport: "unix" }),
        folder,
        false,
      );
      await side.raw("", 1);
      await side.run("qmp_capabilities");
      assertEquals(await side.run("query-block-exports"), {
        return: [
          { id: "e2", type: "nbd", "node-name": "p", "shutting-down": false },
          { id: "e", type: "nbd", "node-name": "t", "shutting-down": false },
        ],
      });
      const client = await NbdClient.connect(await connectUnix(`${folder}/nbd`), {
        exportName: "disk",
        requestBytesMax: MiB,
        outstandingBytesMax: MiB,
      });
      await client.write(64 * KiB, new Uint8Array(KiB).fill(7));
      await client.flush();
      await client.close();
      side.close();
      child.kill("SIGTERM");
      assertEquals((await child.status).code, 0);
      assertEquals((await Deno.readFile(`${folder}/a,b`))[64 * KiB], 7);
      // What QEMU's leaves behind is its own affair.
      for (const left of program === OURS ? ["pid", "nbd", "qmp"] : []) {
        assertEquals(await exists(`${folder}/${left}`), false);
      }
    }));

  Deno.test({
    name: `${name}: an image made, written and left clean at quit`,
    ...needs("qemu-img"),
    fn: () =>
      withFolder(async (folder) => {
        const child = await start(program, folder, [
          ...["--chardev", `socket,id=c,path=${folder}/qmp,server=on,wait=off`],
          ...["--monitor", '{"chardev": "c", "pretty": false}'],
        ]);
        const side = new QmpSide(
          await Deno.connect({ path: `${folder}/qmp`, transport: "unix" }),
          folder,
          false,
        );
        const run1 = async (execute: string, args: Record<string, unknown>): Promise<void> => {
          assertEquals(await side.run(execute, args), { return: {} }, execute);
        };
        const create = async (id: string, options: Record<string, unknown>): Promise<void> => {
          await run1("blockdev-create", { "job-id": id, options });
          await side.until("JOB_STATUS_CHANGE", { id, status: "concluded" });
          await run1("job-dismiss", { id });
        };
        await side.raw("", 1);
        await run1("qmp_capabilities", {});
        const filename = `${folder}/q`;
        await create("c", { driver: "file", filename, size: 0 });
        await run1("blockdev-add", { driver: "file", "node-name": "f", filename });
        await create("d", { driver: "qcow2", file: "f", size: MiB });
        await run1("blockdev-add", { driver: "qcow2", "node-name": "q", file: "f" });
        await run1("block-dirty-bitmap-add", { node: "q", name: "b", persistent: true });
        assertEquals(await side.run("quit", {}, { id: "last" }), { return: {}, id: "last" });
        assertEquals((await child.status).code, 0);
        side.close();
        const check = await run(["qemu-img"], ["check", filename]);
        assertEquals(check.code, 0, check.stdout);
        const info = JSON.parse(
          (await run(["qemu-img"], ["info", "--output=json", filename])).stdout,
        );
        assertEquals(info["format-specific"].data.bitmaps[0].name, "b");
      }),
  });

  Deno.test(`${name}: a monitor on standard input and output`, async () => {
    const input = '{"execute": "qmp_capabilities"}{"execute": "query-jobs"}{"execute": "quit"}';
    const { code, stdout } = await run(program, [
      ...["--chardev", "stdio,id=c", "--monitor", "chardev=c,pretty=on"],
    ], input);
    assertEquals(code, 0);
    assertMatch(stdout, /^\{\r?\n {4}"QMP": \{/);
    assertEquals(stdout.match(/"return"/g)?.length, 3);
  });

  Deno.test(`${name}: what is wrong with an option ends it, with its name`, () =>
    withFolder(async (folder) => {
      const cases: [string[], RegExp][] = [
        [
          ["--blockdev", "nope"],
          /--blockdev nope: Parameter 'driver' does not accept value 'nope'/,
        ],
        [["--blockdev", "driver=null-co,size=x"], /: Parameter 'size' expects integer/],
        [["--blockdev", "{"], /--blockdev \{: JSON parse error/],
        [
          ["--blockdev", `file,node-name=f,filename=${folder}/gone`],
          /: Could not open '.*gone': No such file or directory/,
        ],
        [["--monitor", "chardev=q"], /chardev.*q/],
        [["stray"], /Unexpected argument/],
      ];
      for (const [args, message] of cases) {
        const { code, stderr } = await run(program, args);
        assertEquals(code, 1, args.join(" "));
        assertMatch(stderr, message);
      }
    }));
}

Deno.test("ovis storage-daemon says its version, its options, and that it can't daemonize", async () => {
  const version = await run(OURS, ["--version"]);
  assertMatch(version.stdout, /^ovis storage-daemon version \d/);
  const help = await run(OURS, ["--help"]);
  assertMatch(help.stdout, /--blockdev \[driver=\]/);
  const { code, stderr } = await run(OURS, ["--blockdev", "null-co,node-name=n", "--daemonize"]);
  assertEquals(code, 1);
  assertMatch(stderr, /--daemonize is not supported: start the daemon in the background/);
});
