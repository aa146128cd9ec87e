/** `ovis image`: images that machines boot from. @module */

import { openClient } from "./client.ts";
import type { Program } from "./mod.ts";
import { printLine, printTable } from "./output.ts";

/** An image as the API shows it, as far as it is shown here. */
interface Image {
  name: string;
  cmdline: string;
  builtIn: boolean;
  files: Record<string, { sizeBytes: number }>;
}

/** Adds the command. */
export function registerImage(program: Program): void {
  const image = program.command("image")
    .description("Images that machines boot from")
    .option("--url <url>", "the service (OVIS_URL)")
    .option("--token <token>", "its token (OVIS_TOKEN; else the data folder's, OVIS_DATA)");
  const client = () => openClient(image.opts());
  image.command("list").description("list the images of a running service").action(async () => {
    const images = await (await client()).list<Image>("/v1/images");
    printTable([
      ["NAME", "FILES", "COMMAND LINE"],
      ...images.map(({ name, files, cmdline }) => [name, Object.keys(files).join(","), cmdline]),
    ]);
  });
  image.command("delete <image>").description("delete an image of a running service")
    .action(async (name) => {
      await (await client()).call("DELETE", `/v1/images/${encodeURIComponent(name)}`);
      printLine(`${name} is gone`);
    });
  const pull = image.command("pull").description("Fetch an image");
  pull.command("debian")
    .description(
      "Make a bootable image of Debian's own kernel and busybox for riscv64. Every file is checked " +
        "by the SHA-256 of the signed index. It may be broken off and repeated: what came is kept. " +
        "The image goes to the service that runs on the data folder, else into the folder itself.",
    )
    .option("--name <name>", "of the image", "debian")
    .option("--mirror <url>", "a Debian mirror; default: the one that apt is set to")
    .option("--suite <suite>", "Debian's release", "trixie")
    .option("--keyring <file>", "the keys that may sign the release; default: Debian's")
    .option("--data <folder>", "the data folder (OVIS_DATA), default ~/.local/share/ovis")
    .action(async (options) => {
      const { pullDebian } = await import("./image_action.ts");
      await pullDebian({ ...options, ...image.opts() });
    });
}
