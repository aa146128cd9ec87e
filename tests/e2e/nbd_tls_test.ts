/**
 * A running machine's frozen disk, read by TLS with certificates on both sides.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { makeCertificates } from "../support/certificates.ts";
import { needs } from "../support/clients.ts";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;

Deno.test({
  name: "a machine's exports are read by TLS alone where the service wants that",
  ...needs("openssl", "nbdcopy"),
  async fn() {
    const folder = await Deno.makeTempDir();
    await using certificates = await makeCertificates();
    try {
      const tls = ["--nbd-tls", "required", "--nbd-tls-verify-peer"];
      await using service = await Service.start(folder, [
        ...tls,
        ...["--nbd-tls-certificates", certificates.directory],
      ]);
      await service.call("POST", "/v1/vms", {
        name: "secret",
        image: "demo",
        memoryBytes: 32 * MiB,
        disks: [{ name: "disk0", sizeBytes: 4 * MiB }],
      });
      await using guest = new ServiceConsole(service, "secret");
      await guest.waitFor(/demo> /);
      await guest.demo("stress 0 1 500");
      const { exports: [view] } = await service.call<FleecingAnswer>(
        "POST",
        "/v1/vms/secret/fleecings",
        {},
      );
      if (view === undefined) throw new Error("no export");
      assert(view.nbd.startsWith("nbds://127.0.0.1:"), view.nbd);
      const copy = async (uri: string, name: string) => {
        const { success, stderr } = await new Deno.Command("nbdcopy", {
          args: [uri, `${folder}/${name}`],
        }).output();
        return { success, said: new TextDecoder().decode(stderr) };
      };
      const named = view.nbd.replace("127.0.0.1", "localhost");
      const secured = await copy(`${named}?tls-certificates=${certificates.directory}`, "secured");
      assert(secured.success, secured.said);
      const unix = await copy(view.nbdUnix, "unix");
      assert(unix.success, unix.said);
      assertEquals(
        await Deno.readFile(`${folder}/secured`),
        await Deno.readFile(`${folder}/unix`),
      );
      const plain = await copy(view.nbd.replace("nbds:", "nbd:"), "plain");
      assert(!plain.success, plain.said);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
