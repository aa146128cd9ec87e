/**
 * The page that shows the files of a snapshot, in a real browser: an ext4 disk is frozen, the guest
 * overwrites all of it, and the page still lists, shows and downloads what was there.
 */
import { assert, assertEquals } from "@std/assert";
import type { Page } from "playwright-core";
import { TestBrowser } from "../support/browser.ts";
import { needs } from "../support/clients.ts";
import { makeTree, run } from "../support/file_tree.ts";
import { type FleecingAnswer, Service, ServiceConsole, TOKEN } from "../support/service.ts";

const MiB = 1024 * 1024;
const SEED = 77;
const PARTITION_OFFSET = MiB;

/** A disk with a partition table and one ext4 partition that holds the tree in `folder`. */
function makeDisk(path: string, folder: string): void {
  run("truncate", "-s", "32M", path);
  Deno.writeTextFileSync(`${path}.table`, "label: gpt\nstart=2048, size=61440, name=root\n");
  run("sh", "-c", `sfdisk -q '${path}' < '${path}.table'`);
  const offset = `offset=${PARTITION_OFFSET}`;
  run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "frozen", "-E", offset, "-d", folder, path, "30M");
  Deno.removeSync(`${path}.table`);
}

/** What a click downloads. */
async function download(page: Page, click: () => Promise<void>, to: string): Promise<void> {
  const waiting = page.waitForEvent("download");
  await click();
  await (await waiting).saveAs(to);
}

Deno.test({
  name:
    `a page shows and downloads the files of a frozen disk that the guest overwrote (seed ${SEED})`,
  ...needs("chromium", "mke2fs", "sfdisk", "tar"),
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(`${folder}/data`);
      Deno.mkdirSync(`${folder}/tree`);
      await makeTree(`${folder}/tree`, SEED, { manyCount: 60, largestBytes: 5 * MiB });
      await service.call("POST", "/v1/vms", {
        name: "web",
        image: "demo",
        memoryBytes: 32 * MiB,
        disks: [{ name: "disk0", sizeBytes: 32 * MiB }],
        start: false,
      });
      const disk = run("find", `${folder}/data`, "-name", "disk0.raw").trim();
      makeDisk(disk, `${folder}/tree`);
      await service.call("POST", "/v1/vms/web/start");
      await using guest = new ServiceConsole(service, "web");
      await guest.waitFor(/demo> /);
      const { exports: [view] } = await service.call<FleecingAnswer>(
        "POST",
        "/v1/vms/web/fleecings",
        {},
      );
      const overwriting = guest.demo(`fill 0 0 ${32 * MiB} 238`);

      await using browser = await TestBrowser.start();
      const page = await browser.context.newPage();
      // A browser without a window can't show the dialogue that asks where to save.
      await page.addInitScript("delete globalThis.showSaveFilePicker");
      const complaints: string[] = [];
      page.on("console", (message) => {
        if (message.type() === "error") complaints.push(message.text());
      });
      await page.goto(`${service.url}/files`);
      await page.fill("#token", TOKEN);
      await page.keyboard.press("Enter");
      await page.selectOption("#export", view?.name ?? "");
      await page.getByRole("link", { name: "sizes/" }).click();
      await page.getByRole("button", { name: "f4097.bin", exact: true }).waitFor();
      assertEquals(await page.textContent("#volume"), "ext4 frozen");
      const file = `${folder}/f131073.bin`;
      await download(
        page,
        () => page.getByRole("button", { name: "download f131073.bin" }).click(),
        file,
      );
      assertEquals(Deno.readFileSync(file), Deno.readFileSync(`${folder}/tree/sizes/f131073.bin`));
      await page.goBack();
      await page.getByRole("link", { name: "many/" }).waitFor();
      const archive = `${folder}/all.tar`;
      await download(page, () => page.click("#archive"), archive);
      Deno.mkdirSync(`${folder}/unpacked`);
      run("tar", "-xf", archive, "-C", `${folder}/unpacked`);
      Deno.removeSync(`${folder}/unpacked/lost+found`);
      run("diff", "-r", "--no-dereference", `${folder}/tree`, `${folder}/unpacked`);
      await page.getByRole("link", { name: "many/" }).click();
      await page.getByRole("button", { name: "name-7.txt", exact: true }).click();
      await page.getByText("content 7", { exact: false }).waitFor();
      await overwriting;
      assert(
        Deno.readFileSync(disk).every((byte) => byte === 238),
        "the guest overwrote all of it",
      );
      assertEquals(complaints, []);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
