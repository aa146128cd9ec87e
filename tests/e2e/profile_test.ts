/** `ovis vm profile` and its route, with a guest that is known to spin in one function. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { makeElf, withSymbols } from "../support/elf_file.ts";
import { addi, auipc, halt, jal, jalr, ra, sp, t0 } from "../support/rv_asm.ts";
import { Service, TOKEN } from "../support/service.ts";
import type { Profile } from "../../src/vm/profiler.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const BASE = 0x8020_0000n;
const SPIN_AT = 0x200;
const AWAY_AT = 0x300;

/** Calls `spin`, which counts for ever; `away` is never reached. */
function makeGuest(): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(0x100);
  words.set([auipc(sp, 1), jal(ra, SPIN_AT - 4), halt]);
  words.set([addi(t0, t0, 1), addi(t0, t0, 1), addi(t0, t0, 1), jal(0, -12)], SPIN_AT / 4);
  words.set([jalr(0, ra, 0)], AWAY_AT / 4);
  const elf = makeElf(BASE, new Uint8Array(words.buffer));
  return withSymbols(elf, {
    start: { address: BASE, bytes: 16 },
    spin: { address: BASE + BigInt(SPIN_AT), bytes: 16 },
    away: { address: BASE + BigInt(AWAY_AT), bytes: 4 },
  });
}

/** A service with the machine `spinner`, and what the command says of it. */
async function withSpinner(
  test: (service: Service, kernel: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "ovis-profile-" });
  try {
    const kernel = `${folder}/kernel.elf`;
    await Deno.writeFile(kernel, makeGuest());
    await using service = await Service.start(`${folder}/data`);
    await service.call("POST", "/v1/images", { name: "spin" });
    await service.putImageFile("spin", "kernel", kernel);
    await service.call("POST", "/v1/vms", { name: "spinner", image: "spin", disks: [] });
    await test(service, kernel);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const profile = (service: Service, seconds: number) =>
  service.call<Profile>("POST", PROFILE, { seconds });

const PROFILE = "/v1/vms/spinner/profile";

/**
 * Begins a profile that goes on for long, by `begin`, and waits until it runs: then others are
 * refused. It may itself be refused while a short one of ours runs; then it is begun again.
 */
async function runLong<Answer>(service: Service, begin: () => Promise<Answer>) {
  for (;;) {
    let isRefused = false;
    const answer = begin();
    answer.catch(() => isRefused = true);
    while (!isRefused) {
      if (await service.status("POST", PROFILE, { seconds: 0.1 }) === 409) return { answer };
    }
  }
}

Deno.test("ovis vm profile names the function that a guest spins in", async () => {
  await withSpinner(async (service, kernel) => {
    const output = `${kernel}.stacks`;
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-P=ovis", "main.ts", "vm", "--url", service.url, "profile", "spinner"]
        .concat(["--seconds", "0.5", "--symbols", kernel, "--output", output]),
      cwd: ROOT,
      env: { OVIS_TOKEN: TOKEN },
    }).output();
    const text = new TextDecoder().decode(stdout);
    assertEquals(code, 0, new TextDecoder().decode(stderr));
    assertMatch(text, /^SYMBOL +MODE +SAMPLES +PERCENT\nspin +supervisor +\d+ +100\.0\n/);
    assertMatch(text, /\n\d+ samples in \d+\.\d s, \d+ lost\n$/);
    assertMatch(await Deno.readTextFile(output), /^supervisor;spin \d+\n$/);
  });
});

Deno.test("a profile ends with its machine, its client or its service", async () => {
  await withSpinner(async (service) => {
    const stopped = await runLong(service, () => profile(service, 600));
    await service.call("POST", "/v1/vms/spinner/stop");
    const { seconds, stacks } = await stopped.answer;
    assert(seconds < 600);
    assert(stacks.every(({ mode }) => mode === "supervisor"));
    assertEquals(await service.status("POST", PROFILE, { seconds: 1 }), 409);

    await service.call("POST", "/v1/vms/spinner/start");
    const leaving = new AbortController();
    const left = await runLong(
      service,
      async () => {
        const { signal } = leaving;
        const response = await service.request("POST", PROFILE, { seconds: 600 }, { signal });
        await response.body?.cancel();
        if (!response.ok) throw new Error(`${response.status}`);
      },
    );
    leaving.abort();
    await assertRejects(() => left.answer, DOMException);
    while (await service.status("POST", PROFILE, { seconds: 0.1 }) !== 200);

    const last = await runLong(service, () => profile(service, 600));
    const [answered] = await Promise.allSettled([last.answer, service.stop()]);
    if (answered.status === "fulfilled") assert(answered.value.seconds < 600);
  });
});

Deno.test("a paused machine is not seen anywhere, and a reset does not end a profile", async () => {
  await withSpinner(async (service) => {
    await service.call("POST", "/v1/vms/spinner/pause");
    assertEquals((await profile(service, 0.2)).samples, 0);
    const running = profile(service, 1);
    await service.call("POST", "/v1/vms/spinner/resume");
    await service.call("POST", "/v1/vms/spinner/reset");
    assert((await running).seconds >= 1);
    // Under load the machine may not have been up again in time.
    let { samples } = await running;
    for (let turn = 0; samples === 0 && turn < 60; turn++) {
      ({ samples } = await profile(service, 1));
    }
    assert(samples > 0);
    for (const seconds of [0, -1, 601, "1", null]) {
      assertEquals(await service.status("POST", PROFILE, { seconds }), 400);
    }
    assertEquals(await service.status("POST", "/v1/vms/other/profile", {}), 404);
  });
});
