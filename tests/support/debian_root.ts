/**
 * A disk with Debian's own riscv64 programs on it, made by apt and e2fsprogs without root, kept in
 * the cache folder of the tests. A machine that starts from Debian's initrd with `root=/dev/vda`
 * has a shell on its console, as root in /tmp, and powers off when that ends.
 *
 * @module
 */

import { run } from "./file_tree.ts";

/** What the guest programs of tests and benchmarks need; dependencies come by themselves. */
export const DEBIAN_PROGRAMS = [
  "dash",
  "coreutils",
  "findutils",
  "grep",
  "sed",
  "gawk",
  "mount",
  "gzip",
  "xz-utils",
  "zstd",
  "7zip",
  "openssl",
  "sqlite3",
  "sysbench",
  "python3",
  // Python's own regression tests: of whichever version is the suite's.
  "^libpython3\\.[0-9]+-testsuite$",
  "gcc",
  "libc6-dev",
] as const;

const SUITES = ["trixie", "testing"];
const DISK_MEGABYTES = 2048;
const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";

const INIT = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
cd /tmp
echo "<shell>"
sh
echo "<end of shell>"
sync
echo o > /proc/sysrq-trigger
sleep 60
`;

/** The disk's path: raw, ext4, for many machines to begin with. Made at the first call. */
export async function debianRoot(cache: string): Promise<string> {
  const hash = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode([...DEBIAN_PROGRAMS, INIT].join()),
  );
  const id = [...new Uint8Array(hash, 0, 6)].map((byte) => byte.toString(16)).join("");
  const disk = `${cache}/root-${id}.img`;
  try {
    await Deno.stat(disk);
    return disk;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const work = `${cache}/root-work`;
  await Deno.remove(work, { recursive: true }).catch(() => {});
  for (
    const name of [
      "lists/partial",
      "archives/partial",
      "etc/apt.conf.d",
      "etc/preferences.d",
      "root",
    ]
  ) {
    await Deno.mkdir(`${work}/${name}`, { recursive: true });
  }
  downloadPackages(work);
  makeRoot(work);
  const made = `${work}/root.img`;
  run("mke2fs", "-q", "-F", "-t", "ext4", "-d", `${work}/root`, made, `${DISK_MEGABYTES}M`);
  await Deno.rename(made, disk);
  await Deno.remove(work, { recursive: true });
  return disk;
}

/** Makes `target` a copy of the disk with one more program in it; its path. */
export function withProgram(
  disk: string,
  { name, path, target }: { name: string; path: string; target: string },
): string {
  run("cp", "--sparse=always", disk, target);
  const program = `/usr/bin/${name}`;
  for (const command of [`write ${path} ${program}`, `sif ${program} mode 0100755`]) {
    run("debugfs", "-w", "-R", command, target);
  }
  return target;
}

/** Those and all that they need, from the first suite whose index is sound. */
function downloadPackages(work: string): void {
  const options = {
    "Dir::Etc": `${work}/etc`,
    "Dir::Etc::SourceList": `${work}/sources.list`,
    "Dir::Etc::SourceParts": "/nonexistent",
    "Dir::State::Lists": `${work}/lists`,
    "Dir::State::Status": `${work}/status`,
    "Dir::Cache::Archives": `${work}/archives`,
    "Dir::Cache::pkgcache": "",
    "Dir::Cache::srcpkgcache": "",
    "APT::Architecture": "riscv64",
    "APT::Architectures": "riscv64",
    "APT::Install-Recommends": "false",
    "APT::Sandbox::User": "",
    "Debug::NoLocking": "true",
  };
  const flags = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  Deno.writeTextFileSync(`${work}/status`, "");
  let reason: unknown = null;
  for (const suite of SUITES) {
    Deno.writeTextFileSync(
      `${work}/sources.list`,
      `deb [arch=riscv64 signed-by=${KEYRING}] http://deb.debian.org/debian ${suite} main\n`,
    );
    try {
      run("apt-get", ...flags, "-q", "--error-on=any", "update");
      run("apt-get", ...flags, "-q", "-y", "--download-only", "install", ...DEBIAN_PROGRAMS);
      return;
    } catch (error) {
      reason = error;
    }
  }
  throw reason;
}

/** Unpacks them; no package's own scripts are run. */
function makeRoot(work: string): void {
  const root = `${work}/root`;
  for (const name of ["bin", "sbin", "lib"]) {
    Deno.mkdirSync(`${root}/usr/${name}`, { recursive: true });
    Deno.symlinkSync(`usr/${name}`, `${root}/${name}`);
  }
  for (const { name } of Deno.readDirSync(`${work}/archives`)) {
    if (name.endsWith(".deb")) run("dpkg-deb", "-x", `${work}/archives/${name}`, root);
  }
  for (const name of ["proc", "sys", "dev", "tmp", "run", "etc"]) {
    Deno.mkdirSync(`${root}/${name}`, { recursive: true });
  }
  Deno.removeSync(`${root}/usr/share/doc`, { recursive: true });
  // The shell is there before its package's script would have named it.
  run("ln", "-sf", "dash", `${root}/usr/bin/sh`);
  run("rm", "-f", `${root}/usr/sbin/init`);
  Deno.writeTextFileSync(`${root}/usr/sbin/init`, INIT, { mode: 0o755 });
}
