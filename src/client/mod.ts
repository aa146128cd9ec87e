/**
 * Ovis' browser library: a running machine's frozen disk, read over NBD in a WebSocket.
 *
 * ```ts
 * const disk = await connect("ws://127.0.0.1:8080/v1/exports/NAME/nbd", { ticket });
 * const boot = await disk.read(0, 512);
 * for await (const chunk of disk.chunks()) { ... }
 * const { partitions: [first] } = await readPartitions(disk);
 * const volume = await openVolume(first ? slice(disk, first.offset, first.sizeBytes) : disk);
 * for await (const { name, sizeBytes } of volume.list("/etc")) { ... }
 * const hosts = await new Response((await volume.open("/etc/hosts")).stream()).text();
 * const archive = tarOf(volume, "/etc");
 * await disk.close();
 * ```
 *
 * @module
 */

export {
  connect,
  type ConnectOptions,
  type DiskChunk,
  type DiskExtent,
  RemoteDisk,
  type RemoteDiskOptions,
  type StreamOptions,
  type StreamProgress,
  type WaitOptions,
} from "./disk.ts";
export { NbdError } from "../nbd/client.ts";
export { NbdHandshakeError } from "../nbd/client_handshake.ts";
export { CachedSource, type CacheOptions } from "./fs/cache.ts";
export type { FileInfo, FileKind, FileNode, FileSystem } from "./fs/node.ts";
export { type Partition, type PartitionTable, readPartitions } from "./fs/partitions.ts";
export { type ByteSource, FileSystemError, slice } from "./fs/source.ts";
export { tarOf, type TarOptions, type TarProgress } from "./fs/tar.ts";
export {
  type DirectoryEntry,
  type FileStreamOptions,
  openVolume,
  type PathOptions,
  Volume,
  VolumeFile,
  type WalkEntry,
} from "./fs/volume.ts";
