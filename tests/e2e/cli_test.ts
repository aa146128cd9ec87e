/**
 * The command line as people meet it: help on everything, mistakes answered in a line that says
 * what is wrong, signals obeyed with nothing left behind.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { Service, TOKEN } from "../support/service.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

interface Result {
  code: number;
  out: string;
  error: string;
}

/** Starts `ovis ARGS`; its temporary files go to `folder`. */
function spawn(
  args: string[],
  options: { folder: string; environment?: Record<string, string> },
): Deno.ChildProcess {
  const { folder, environment = {} } = options;
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "-P=ovis", "main.ts", ...args],
    cwd: ROOT,
    env: { HOME: folder, TMPDIR: folder, DENO_DIR: denoFolder(), ...environment },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** The runtime's cache stays where it is when HOME is another. */
function denoFolder(): string {
  const cache = Deno.env.get("XDG_CACHE_HOME") ?? `${Deno.env.get("HOME")}/.cache`;
  return Deno.env.get("DENO_DIR") ?? `${cache}/deno`;
}

async function withFolder(action: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-cli-" });
  try {
    await action(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function ovis(args: string[], folder: string, service?: Service): Promise<Result> {
  const environment: Record<string, string> = service === undefined
    ? {}
    : { OVIS_URL: service.url, OVIS_TOKEN: TOKEN };
  const { code, stdout, stderr } = await spawn(args, { folder, environment }).output();
  const decoder = new TextDecoder();
  return { code, out: decoder.decode(stdout), error: decoder.decode(stderr) };
}

/** The one line of a failure that is not the runtime's. */
function complaint({ code, error }: Result): string {
  assertEquals(code, 1, error);
  assert(!/^ +at /m.test(error), `a stack trace is no answer:\n${error}`);
  return error.split("\n").find((line) => /^(ovis|error): /.test(line)) ?? error;
}

Deno.test("ovis COMMAND --help says what each command takes", async () => {
  await withFolder(async (folder) => {
    const help = async (...args: string[]) => {
      const { code, out, error } = await ovis([...args, "--help"], folder);
      assertEquals(code, 0, error);
      assertMatch(out, new RegExp(`^Usage: ovis ${args.join(" ")}`));
      return out;
    };
    const commands = (text: string) =>
      [...text.slice(text.indexOf("\nCommands:")).matchAll(/^ {2}(\w[\w-]*) /gm)]
        .map(([, name = ""]) => name).filter((name) => name !== "help");
    const main = commands(await help());
    for (const name of ["serve", "vm", "demo", "image"]) assert(main.includes(name), name);
    for (const name of main) {
      for (const inner of commands(await help(name))) await help(name, inner);
    }
    const version = await ovis(["--version"], folder);
    assertMatch(version.out, /^\d+\.\d+\.\d+\n$/);
  });
});

Deno.test("ovis answers mistakes with a line that says what is wrong", async () => {
  await withFolder(async (folder) => {
    const cases: [string[], RegExp][] = [
      [["explode"], /unknown command 'explode'/],
      [["vm", "list", "--nonsense"], /unknown option '--nonsense'/],
      [["vm", "show"], /missing required argument 'vm'/],
      [["vm", "create", "x", "--disk", "a"], /'--disk <name:size>' argument 'a' is invalid/],
      [["vm", "create", "x", "--harts", "1.5"], /'1\.5' is invalid\. not a number/],
      [["vm", "list", "--url", "http://127.0.0.1:9"], /no service answers at http:.*ovis serve/],
      [["vm", "list", "--url", "nonsense"], /no service answers at nonsense/],
      [["serve", "--port", "many"], /'--port <number>' argument 'many' is invalid/],
      [["serve", "--port", "70000"], /^ovis: port: .*<=65535/],
      [["serve", "extra"], /too many arguments/],
      [["demo", "--guest", "amiga"], /Allowed choices are debian, demo/],
      [["image", "pull", "debian", "--name", "a/b"], /--name a\/b: a name is 1 to 63/],
      [
        ["image", "pull", "debian", "--mirror", "nonsense"],
        /^ovis: nonsense\/dists\/.*Invalid URL/,
      ],
      [["riscv-tests", `${folder}/none`], /No such file|none/],
    ];
    for (const [args, expected] of cases) {
      assertMatch(complaint(await ovis(args, folder)), expected, args.join(" "));
    }
    // A mirror that does not answer: nothing was begun.
    using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = taken.addr;
    taken.close();
    const data = `${folder}/data`;
    const mirror = `http://127.0.0.1:${port}`;
    const pull = await ovis(
      ["image", "pull", "debian", "--mirror", mirror, "--data", data],
      folder,
    );
    assert(complaint(pull).startsWith(`ovis: ${mirror}/dists/trixie/InRelease: `), pull.error);
  });
});

Deno.test("ovis image and ovis vm console speak with a service", async () => {
  await withFolder(async (folder) => {
    await using service = await Service.start(`${folder}/data`);
    await service.call("POST", "/v1/images", { name: "spare", cmdline: "quiet" });
    const run = (...args: string[]) => ovis(args, folder, service);
    const list = await run("image", "list");
    assertMatch(list.out, /^NAME .*\ndemo +kernel *\nspare +quiet\n$/, list.error);
    assertEquals((await run("image", "delete", "spare")).out, "spare is gone\n");
    assertMatch(complaint(await run("image", "delete", "spare")), /No such image/);
    assertMatch(complaint(await run("image", "delete", "demo")), /built-in image can't be changed/);
    assertMatch(complaint(await run("vm", "console", "none")), /No such machine/);
    assertMatch(
      complaint(await run("vm", "list", "--token", "not-the-token")),
      /A valid token or ticket is needed/,
    );
  });
});

Deno.test("ovis demo shows the main job, --keep leaves it running until Ctrl-C", async () => {
  await withFolder(async (folder) => {
    const child = spawn(["demo", "--guest", "demo", "--keep"], { folder });
    let text = "";
    const errors = new Response(child.stderr).text();
    let isServed = false;
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += piece;
      const [, token, url] = /Bearer ([\w-]+)" (http:\S+)\n/.exec(text) ?? [];
      if (isServed || token === undefined || url === undefined) continue;
      isServed = true;
      const answer = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
      assertEquals((await answer.json()).state, "running");
      child.kill("SIGINT");
    }
    assertEquals((await child.status).code, 0, await errors);
    const hashes = [...text.matchAll(/^.*read .*: ([0-9a-f]{64}), as it was$/gm)];
    assertEquals(hashes.length, 3, text);
    assertMatch(text, /stopped, everything removed\n$/);
    assertEquals(leftovers(folder), []);
  });
});

Deno.test("ovis demo that is broken off leaves nothing behind", async () => {
  await withFolder(async (folder) => {
    const child = spawn(["demo", "--guest", "demo"], { folder });
    const errors = new Response(child.stderr).text();
    let text = "";
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream())) {
      if (!text.includes("has booted") && (text + piece).includes("has booted")) {
        child.kill("SIGINT");
      }
      text += piece;
    }
    assertEquals((await child.status).code, 130, await errors);
    assertMatch(text, /stopped, everything removed\n$/);
    assertEquals(leftovers(folder), []);
  });
});

function leftovers(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map(({ name }) => name)
    .filter((name) => name.startsWith("ovis"));
}

Deno.test("ovis vm log | head ends quietly once its reader has enough", async () => {
  await withFolder(async (folder) => {
    await using service = await Service.start(`${folder}/data`);
    await service.call("POST", "/v1/vms", { name: "piped", image: "demo" });
    const child = spawn(["vm", "log", "--follow", "piped"], {
      folder,
      environment: { OVIS_URL: service.url, OVIS_TOKEN: TOKEN },
    });
    const reader = child.stdout.getReader();
    assertEquals((await reader.read()).done, false);
    await reader.cancel();
    const input = `/v1/vms/piped/console/input`;
    let hasEnded = false;
    const status = child.status.finally(() => hasEnded = true);
    while (!hasEnded) {
      await service.call("POST", input, new TextEncoder().encode("help\r"));
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assertEquals((await status).code, 141);
    const errors = await new Response(child.stderr).text();
    assert(!errors.includes("ovis:"), errors);
  });
});
