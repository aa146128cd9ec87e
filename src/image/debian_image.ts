/**
 * Makes a bootable image out of Debian's own packages: the kernel as it is packaged, and an
 * initramfs with busybox and the modules that a virtio root needs, which gives a shell on the
 * console or, with `root=/dev/vda`, starts what is installed there.
 *
 * @module
 */

import { gzipSync } from "node:zlib";
import { CpioWriter } from "./cpio.ts";
import { collect, decompress } from "./decompress.ts";
import { extractDeb } from "./deb.ts";
import {
  type ArchiveOptions,
  type DebianPackage,
  fetchPackage,
  readPackages,
} from "./debian_archive.ts";
import { ImageError } from "./errors.ts";
import { loadOrder, moduleName } from "./kernel_module.ts";

/** Modules that are loaded at the start, besides what they need themselves. */
const MODULES = ["virtio_mmio", "virtio_blk", "ext4", "crc32c_generic"];
const MODULE_BYTES_MAX = 64 * 1024 * 1024;

/** The command line that an image of Debian's starts with. */
const DEBIAN_CMDLINE = "console=ttyS0";

const INIT = `#!/bin/sh
# Loads the disks' drivers, then starts the system on root=, or a shell where none is given.
export PATH=/bin:/sbin
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /run /tmp /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /lib/modules/order); do
  insmod "/lib/modules/$module.ko" || echo "cannot load $module"
done
root=
for word in $(cat /proc/cmdline); do
  case "$word" in root=*) root="\${word#root=}" ;; esac
done
if [ -n "$root" ]; then
  if mount "$root" /mnt && [ -x /mnt/sbin/init ]; then
    umount /proc /sys
    mount --move /dev /mnt/dev
    exec switch_root /mnt /sbin/init
  fi
  echo "$root holds no system to start: here is a shell"
fi
hostname ovis
echo
echo "Debian's kernel $(uname -r) with busybox. Disks: $(ls /dev | grep '^vd' | tr '\\n' ' ')"
while true; do
  setsid cttyhack sh -l
done
`;

/** The files of an image, ready to be stored. */
export interface ImageFiles {
  /** Linux as the package has it. */
  kernel: Uint8Array<ArrayBuffer>;
  /** A gzipped cpio archive: busybox, kernel modules and the init script. */
  initrd: Uint8Array<ArrayBuffer>;
  /** The kernel's command line that the image is made for. */
  cmdline: string;
  /** Names and versions of the packages it was made from. */
  description: string;
}

/** Packages that an image is made of: busybox, and what kernels come in. */
export function isImagePackage(name: string): boolean {
  return name === "busybox-static" || /^linux-(image|binary|modules)-/.test(name);
}

/** Fetches what is not in the cache yet, verifies it, and makes the image. */
export async function makeDebianImage(options: ArchiveOptions): Promise<ImageFiles> {
  await Deno.mkdir(options.cacheDirectory, { recursive: true });
  return await imageOfIndex(await readPackages(options, isImagePackage), options);
}

/** Makes the image from packages of an index: those of which `isImagePackage` is true. */
export async function imageOfIndex(
  packages: readonly DebianPackage[],
  options: ArchiveOptions,
): Promise<ImageFiles> {
  const kernel = kernelPackages(packages, options.architecture);
  const busybox = packages.find((pkg) => pkg.name === "busybox-static");
  if (busybox === undefined) throw new ImageError("the suite has no busybox-static");
  const kernelFiles = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const pkg of kernel) {
    const files = await extractDeb(await fetchPackage(pkg, options), {
      wants: (path) => isKernel(path) || isNeededModule(path),
      onProgress: (done, total) => options.onProgress?.(`unpacking ${pkg.name}`, done, total),
    });
    for (const [path, bytes] of files) kernelFiles.set(path, bytes);
  }
  const image = [...kernelFiles].find(([path]) => isKernel(path))?.[1];
  if (image === undefined) throw new ImageError("the kernel's packages have no kernel in them");
  const busyboxFiles = await extractDeb(await fetchPackage(busybox, options), {
    wants: (path) => /bin\/busybox$/.test(path),
  });
  const program = busyboxFiles.values().next().value;
  if (program === undefined) throw new ImageError("the busybox package has no busybox in it");
  return {
    kernel: image,
    initrd: makeInitrd(program, await unpackModules(kernelFiles)),
    cmdline: DEBIAN_CMDLINE,
    description: [...kernel, busybox].map(({ name, version }) => `${name} ${version}`).join(", "),
  };
}

/**
 * The package of the kernel that the metapackage linux-image-ARCH names, and those that it is split
 * into where it is itself only a name for them: linux-binary-VERSION and linux-modules-VERSION.
 */
function kernelPackages(packages: readonly DebianPackage[], architecture: string): DebianPackage[] {
  const find = (name: string | undefined) => packages.find((pkg) => pkg.name === name);
  const dependencies = (pkg: DebianPackage | undefined) => pkg?.depends.split(/[ ,(|]+/) ?? [];
  const meta = find(`linux-image-${architecture}`);
  const kernel = find(dependencies(meta).find((word) => word.startsWith("linux-image-")));
  if (kernel === undefined) throw new ImageError(`the suite has no kernel for ${architecture}`);
  const parts = dependencies(kernel).filter((word) => /^linux-(binary|modules)-/.test(word))
    .map((name) => {
      const part = find(name);
      if (part === undefined) throw new ImageError(`the suite has no ${name}`);
      return part;
    });
  return [kernel, ...parts];
}

/** Debian 13 keeps kernels in /boot, later releases beside their modules. */
function isKernel(path: string): boolean {
  return /^(boot|usr\/lib\/modules\/[^/]+)\/vmlinu[^/]*$/.test(path);
}

/** Folders of the module tree that MODULES and their needs come from: the rest is not unpacked. */
function isNeededModule(path: string): boolean {
  return /\/kernel\/(drivers\/(virtio|block\/virtio_blk)|fs\/(ext4|jbd2|mbcache)|lib|crypto|arch\/riscv\/crypto)/
    .test(path) && /\.ko(\.(xz|zst|gz))?$/.test(path);
}

async function unpackModules(files: Map<string, Uint8Array<ArrayBuffer>>) {
  const modules = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const [path, bytes] of files) {
    const match = /([^/]+)\.ko(\.\w+)?$/.exec(path);
    if (match?.[1] === undefined) continue;
    const plain = decompress(path, new Blob([bytes]).stream());
    modules.set(moduleName(match[1]), await collect(plain, MODULE_BYTES_MAX));
  }
  return modules;
}

function makeInitrd(
  busybox: Uint8Array,
  modules: Map<string, Uint8Array>,
): Uint8Array<ArrayBuffer> {
  const order = loadOrder(MODULES, (name) => modules.get(name));
  const cpio = new CpioWriter();
  for (const path of ["bin", "dev", "lib", "lib/modules"]) cpio.directory(path);
  cpio.characterDevice("dev/console", { major: 5, minor: 1, mode: 0o600 });
  cpio.file("bin/busybox", busybox, 0o755);
  cpio.symlink("bin/sh", "busybox");
  for (const name of order) {
    cpio.file(`lib/modules/${name}.ko`, modules.get(name) ?? new Uint8Array());
  }
  cpio.file("lib/modules/order", `${order.join("\n")}\n`);
  cpio.file("init", INIT, 0o755);
  return new Uint8Array(gzipSync(cpio.end()));
}
