/**
 * A data folder whose file system is full: guests get I/O errors, fleecings do what their mode
 * says, and the service goes on, so that room can be made through it.
 */
import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const VIEW_BYTES = 4 * MiB;

async function mountSmall(path: string, size: string): Promise<boolean> {
  const args = ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", path];
  try {
    return (await new Deno.Command("mount", { args, stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

async function withSmallDisk(action: (service: Service) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    if (!await mountSmall(folder, "16m")) {
      // deno-lint-ignore no-console
      console.log("no permission to mount a small tmpfs: skipped");
      return;
    }
    try {
      await using service = await Service.start(folder);
      await action(service);
    } finally {
      await new Deno.Command("umount", { args: [folder] }).output();
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function startGuest(service: Service, name: string, sizeBytes: number) {
  await service.call("POST", "/v1/vms", {
    name,
    image: "demo",
    memoryBytes: 32 * MiB,
    disks: [{ name: "disk0", sizeBytes }],
  });
  const guest = new ServiceConsole(service, name);
  await guest.waitFor(/demo> /);
  return guest;
}

function hashOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A command that must fail with an I/O error in the guest. */
async function assertIoError(guest: ServiceConsole, command: string): Promise<void> {
  await guest.type(`${command}\r`);
  const [output] = await guest.waitFor(/[^]*?(ok|failed)\r?\ndemo> /);
  assert(output.includes("I/O error"), output);
}

Deno.test("where the file system is full, guests get errors and nothing else is lost", async () => {
  await withSmallDisk(async (service) => {
    await using guest = await startGuest(service, "kept", VIEW_BYTES);
    await guest.demo(`fill 0 0 ${VIEW_BYTES} 0x41`);
    const expected = new Uint8Array(VIEW_BYTES).fill(0x41);
    await using filler = await startGuest(service, "filler", 64 * MiB);
    const call = (method: string, path: string, body?: unknown) =>
      service.call<FleecingAnswer & { brokenBy: string | null }>(method, path, body);

    await call("POST", "/v1/vms/kept/fleecings", { name: "soft" });
    await call("POST", "/v1/vms/kept/fleecings", { name: "hard", onCbwError: "break-guest-write" });
    await assertIoError(filler, "fill 0 0 64M 0x42");

    // The newest fleecing stands above the older one: its failed copy breaks the guest's write.
    await assertIoError(guest, `fill 0 0 ${VIEW_BYTES} 0x43`);
    const view = await service.request("GET", "/v1/exports/kept-disk0-hard/content");
    assertEquals(new Uint8Array(await view.arrayBuffer()), expected);
    await call("DELETE", "/v1/vms/kept/fleecings/hard");
    // With the other alone the guest's write goes on and the view breaks, which says why.
    await guest.demo(`fill 0 0 ${VIEW_BYTES} 0x43`);
    const broken = await call("GET", "/v1/vms/kept/fleecings/soft");
    assertEquals(broken.state, "broken");
    assert(/No space left/.test(broken.brokenBy ?? ""), broken.brokenBy ?? "");
    const refused = await service.request("GET", "/v1/exports/kept-disk0-soft/content");
    assertEquals([refused.status, (await refused.json()).code], [403, "rangeForbidden"]);

    await service.call("POST", "/v1/images", { name: "late" });
    const upload = await service.request(
      "PUT",
      "/v1/images/late/files/kernel",
      new Uint8Array(MiB),
    );
    assertEquals([upload.status, (await upload.json()).code], [507, "noSpace"]);

    await call("DELETE", "/v1/vms/kept/fleecings/soft");
    await service.call("POST", "/v1/vms/kept/stop");
    await service.call("DELETE", "/v1/vms/filler");
    await service.call("POST", "/v1/vms/kept/start");
    await guest.waitFor(/Ovis demo guest[^]*demo> /);
    const written = new Uint8Array(VIEW_BYTES).fill(0x43);
    assert((await guest.demo("hash 0")).includes(hashOf(written)));
    await guest.demo("write 0 0 room");
  });
});
