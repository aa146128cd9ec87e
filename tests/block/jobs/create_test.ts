import { assert, assertEquals } from "@std/assert";
import { startCreate } from "../../../src/block/jobs/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { MemoryNode } from "../../../src/block/drivers/memory.ts";
import { assertFails } from "../support.ts";
import { JobRig, MiB } from "./rig.ts";

Deno.test("startCreate() makes a file and a qcow2 image, and waits to be dismissed", async () => {
  const directory = Deno.makeTempDirSync();
  const rig = new JobRig();
  try {
    const filename = `${directory}/x.img`;
    const mayOpen = (path: string): boolean => path.startsWith(directory);
    const file = startCreate(rig.layer, {
      jobId: "c0",
      target: { driver: "file", filename, sizeBytes: 3 * MiB, mayOpen },
    });
    await rig.conclude(file);
    assertEquals(Deno.statSync(filename).size, 3 * MiB);
    assertEquals(rig.takeEvents(), [
      "c0 created",
      "c0 running",
      "c0 waiting",
      "c0 pending",
      "c0 concluded",
    ]);
    assertEquals(file.info(), {
      id: "c0",
      type: "create",
      status: "concluded",
      currentProgress: 1,
      totalProgress: 1,
    });
    await assertFails(() => rig.jobs.get("c1"), "ENOENT", "Job not found");
    file.dismiss();

    const node = rig.graph.add(new MemoryNode({ nodeName: "n", sizeBytes: 0 }));
    const image = startCreate(rig.layer, {
      jobId: "c0",
      target: {
        driver: "qcow2",
        file: () => Promise.resolve(node),
        sizeBytes: 64 * MiB,
        clusterBytes: 4096,
      },
    });
    await rig.conclude(image);
    image.dismiss();
    const opened = await Qcow2Node.open({ nodeName: "q", file: node, isReadOnly: true });
    rig.graph.add(opened);
    assertEquals([opened.sizeBytes, opened.clusterSizeBytes], [64 * MiB, 4096]);
  } finally {
    await rig.close();
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("startCreate() fails with the reason where it may not, or the node is in use", async () => {
  const rig = new JobRig();
  const used = rig.memory("used");
  rig.device(used);
  const cases = [
    {
      driver: "file" as const,
      filename: "/nowhere/x",
      sizeBytes: MiB,
      mayOpen: () => false,
      error: /not in an allowed folder/,
    },
    { driver: "raw" as const, file: used, sizeBytes: MiB, error: /Permission conflict/ },
    {
      driver: "qcow2" as const,
      file: () => Promise.resolve(used),
      sizeBytes: 513,
      error: /Permission conflict/,
    },
  ];
  for (const { error, ...target } of cases) {
    const job = startCreate(rig.layer, { jobId: "c0", target });
    await rig.conclude(job);
    assert(error.test(job.error ?? ""), job.error ?? "no error");
    job.dismiss();
  }
  assertEquals(used.sizeBytes, 4 * MiB);
  await rig.close();
});
