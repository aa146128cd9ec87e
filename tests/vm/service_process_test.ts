/**
 * The service as a process: what a signal, a crash or a second service does to it and to its data.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

async function withFolder(action: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempDir({ prefix: "ovis-process-" });
  try {
    await action(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

/** Runs a command line to its end. */
async function ovis(...args: string[]): Promise<{ code: number; text: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-P=ovis", "main.ts", ...args],
    cwd: ROOT,
    stdin: "null",
  }).output();
  const decoder = new TextDecoder();
  return { code, text: decoder.decode(stdout) + decoder.decode(stderr) };
}

function names(path: string): string[] {
  return [...Deno.readDirSync(path)].map(({ name }) => name).sort();
}

Deno.test("a second service on a data folder is refused, the first goes on", async () => {
  await withFolder(async (folder) => {
    await using service = await Service.start(folder);
    const { code, text } = await ovis("serve", "--port", "0", "--data", folder);
    assertEquals(code, 1);
    assertMatch(text, new RegExp(`in use by another Ovis service \\(process ${service.processId}`));
    assertEquals(await service.status("GET", "/healthz"), 200);
  });
});

Deno.test("serve says what is wrong with its settings", async () => {
  const { code, text } = await ovis("serve", "--no-auth", "--host", "0.0.0.0", "--data", "/none");
  assertEquals(code, 1);
  assertMatch(text, /ovis: host: without authentication the service listens on loopback only/);
});

Deno.test("serve names the address, the folder or the file that it can't use", async () => {
  await withFolder(async (folder) => {
    using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = taken.addr;
    const failure = async (...args: string[]) => {
      const { code, text } = await ovis("serve", ...args);
      assertEquals(code, 1, text);
      return text.split("\n").find((line) => line.startsWith("ovis: "));
    };
    assertEquals(
      await failure("--port", `${port}`, "--data", `${folder}/new`),
      `ovis: can't listen on 127.0.0.1, port ${port}: Address already in use (os error 98)`,
    );
    const file = `${folder}/file`;
    await Deno.writeTextFile(file, "{");
    assertMatch(
      await failure("--data", file) ?? "",
      new RegExp(`the data folder ${file} can't be used: File exists`),
    );
    assertMatch(await failure("--config", file) ?? "", new RegExp(`^ovis: ${file}: `));
    await Deno.mkdir(`${folder}/strange`);
    await Deno.writeTextFile(`${folder}/strange/ovis.sqlite`, "no database".repeat(1000));
    assertEquals(
      await failure("--data", `${folder}/strange`),
      `ovis: ${folder}/strange/ovis.sqlite can't be used: file is not a database`,
    );
  });
});

Deno.test("after kill -9 disks are intact, temporary images gone, machines stopped", async () => {
  await withFolder(async (folder) => {
    {
      await using service = await Service.start(folder);
      await service.call("POST", "/v1/vms", { name: "t1", image: "demo" });
      await using guest = new ServiceConsole(service, "t1");
      await guest.waitFor(/demo> /);
      await guest.demo("write 0 512 before-the-crash");
      await guest.demo("flush 0");
      await service.call<FleecingAnswer>("POST", "/v1/vms/t1/fleecings", { name: "f1" });
      await guest.demo("write 0 512 over-the-snapshot");
      await guest.demo("flush 0");
      await service.call("POST", "/v1/images", { name: "held" });
      // An upload that never ends.
      const body = new ReadableStream<Uint8Array>({
        start: (controller) => controller.enqueue(new Uint8Array(100_000)),
      });
      const upload = service.request("PUT", "/v1/images/held/files/kernel", body)
        .then((response) => response.body?.cancel(), () => {});
      while (!isBegun(`${folder}/images/held`)) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await service.kill();
      await upload;
    }
    const [id = ""] = names(`${folder}/disks`);
    assertEquals(names(`${folder}/scratch/${id}`).length, 1, "the crash leaves a temporary image");
    assertEquals(names(`${folder}/sockets`).length, 2);

    await using service = await Service.start(folder);
    assertMatch(service.log, /fleecings lost in a crash: \["t1\/f1"\]/);
    assertMatch(service.log, /temporary images removed: \[.*\], \d+ bytes/);
    assertMatch(service.log, /half-made uploads removed: \["held\/\.kernel\..*\.tmp"\]/);
    assertEquals(names(`${folder}/scratch`), []);
    assertEquals(names(`${folder}/sockets`), []);
    assertEquals(names(`${folder}/images/held`), []);
    const vm = await service.call<{ state: string; fleecings: string[] }>("GET", "/v1/vms/t1");
    assertEquals([vm.state, vm.fleecings], ["stopped", []]);
    await service.call("POST", "/v1/vms/t1/start");
    await using guest = new ServiceConsole(service, "t1");
    await guest.waitFor(/demo> /);
    assertMatch(await guest.demo("read 0 512 512"), /6f7665722d7468652d736e617073686f74/);
    const disk = await Deno.readFile(`${folder}/disks/${id}/disk0.raw`);
    assertMatch(new TextDecoder().decode(disk.subarray(512, 1024)), /^over-the-snapshot/);
  });
});

Deno.test("SIGTERM stops machines and readers in order and exits with 0", async () => {
  await withFolder(async (folder) => {
    const service = await Service.start(folder);
    for (const name of ["t1", "t2"]) {
      await service.call("POST", "/v1/vms", { name, image: "demo" });
    }
    await service.call("POST", "/v1/vms/t1/fleecings", {});
    const followed = await service.request("GET", "/v1/vms/t1/console/log?follow");
    const text = followed.text();
    assertEquals(await service.stop(), 0);
    await text;
    assertMatch(service.log, /SIGTERM: stopping.*\n.*stopped/);
    for (const name of ["scratch", "sockets"]) assertEquals(names(`${folder}/${name}`), []);
    await using again = await Service.start(folder);
    assertEquals(/crash|removed/.test(again.log), false, again.log);
    const { items } = await again.call<{ items: { state: string }[] }>("GET", "/v1/vms");
    assertEquals(items.map(({ state }) => state), ["stopped", "stopped"]);
  });
});

Deno.test("a second signal ends a service that still stops", async () => {
  await withFolder(async (folder) => {
    const service = await Service.start(folder);
    await service.call("POST", "/v1/images", { name: "held" });
    // A request under way holds the stop up for some seconds.
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(new Uint8Array(100_000)),
    });
    const upload = service.request("PUT", "/v1/images/held/files/kernel", body)
      .then((response) => response.body?.cancel(), () => {});
    while (!isBegun(`${folder}/images/held`)) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    Deno.kill(service.processId, "SIGTERM");
    while (!service.log.includes("stopping")) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    assertEquals(await service.stop(), 130);
    await upload;
  });
});

Deno.test("the token is made at the first start, printed once, and kept for the owner", async () => {
  await withFolder(async (folder) => {
    const start = async () => {
      const child = new Deno.Command(Deno.execPath(), {
        // As `deno task start` does it, but without a person to ask for more permissions.
        args: ["run", "--no-prompt", "-P=serve", "main.ts", "serve", "--port", "0"]
          .concat("--data", folder),
        cwd: ROOT,
        env: { OVIS_LOG_LEVEL: "error" },
        stdin: "null",
        stdout: "piped",
        stderr: "null",
      }).spawn();
      let text = "";
      const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
      while (!text.includes("listens on")) text += (await reader.read()).value ?? "";
      child.kill("SIGINT");
      while (!(await reader.read()).done);
      assertEquals((await child.status).code, 0);
      return text;
    };
    const token = /^token: ([\w-]+)$/m.exec(await start())?.[1];
    assertEquals(await Deno.readTextFile(`${folder}/token`), `${token}\n`);
    assertEquals(((await Deno.stat(`${folder}/token`)).mode ?? 0) & 0o777, 0o600);
    const again = await start();
    assert(again.includes(`the token stands in ${folder}/token`), again);
    assert(!again.includes(`${token}`), again);
  });
});

function isBegun(folder: string): boolean {
  try {
    return names(folder).length > 0;
  } catch {
    return false;
  }
}
