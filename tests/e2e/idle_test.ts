/**
 * Machines that do nothing: they take no processor time, also after they worked.
 */
import { assertLess } from "@std/assert";
import { Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
/** As /proc shows processor time on every Linux. */
const TICKS_PER_SECOND = 100;
const WATCHED_MS = 3000;
const MACHINE_COUNT = 3;

/** Seconds of processor time that the service has used. */
async function processorSeconds(service: Service): Promise<number> {
  const stat = await Deno.readTextFile(`/proc/${service.processId}/stat`);
  // utime and stime; what stands before them may hold spaces, but ends with the last bracket.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

Deno.test({
  name: "idle machines take no processor time, also after they worked",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(folder);
      for (let index = 0; index < MACHINE_COUNT; index++) {
        const name = `idle-${index}`;
        await service.call("POST", "/v1/vms", {
          name,
          image: "demo",
          memoryBytes: 32 * MiB,
          disks: [{ name: "disk0", sizeBytes: MiB }],
        });
        await using guest = new ServiceConsole(service, name);
        await guest.waitFor(/demo> /);
        await guest.demo(`stress 0 ${index} 2000`);
        await guest.demo("flush 0");
      }
      const before = await processorSeconds(service);
      await new Promise((resolve) => setTimeout(resolve, WATCHED_MS));
      const used = await processorSeconds(service) - before;
      // One machine that does not sleep uses a processor all the time, or its share of it.
      assertLess(used, WATCHED_MS / 1000 / 4, "seconds of processor time");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
