/**
 * Every limit of the service, in one table. No value of a guest's, an NBD client's or an HTTP
 * client's sizes an allocation or a loop before it was compared with one of these.
 *
 * @module
 */

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

/** Bytes, milliseconds and counts, as each name's end says. */
export const limits = {
  // machines
  vmCount: 64,
  hartCount: 8,
  /** RAM of a machine: devices and harts need room beside it in 4 GiB of memory. */
  memoryMinBytes: 8 * MiB,
  memoryMaxBytes: 3584 * MiB,
  /** Translated code of a hart, at most 3839 regions: at these, all is dropped and made anew. */
  translatorRegions: 3839,
  translatorModuleBytes: 32 * MiB,
  diskCount: 8,
  diskMaxBytes: 16 * 1024 * GiB,
  /** Disks of the service, those of machines among them. */
  diskTotal: 1024,
  /** An I/O worker of a disk without a machine ends when nobody used it for so long. */
  diskIdleMs: 10_000,
  /** Jobs of one machine or disk at a time, and ended ones that the service remembers. */
  jobsPerVm: 32,
  jobsKept: 256,
  /** Actions of one transaction. */
  transactionActions: 128,
  /** Events that a client which lost its connection can still get, and waiting ones of a slow one. */
  eventsKept: 1024,
  eventsQueued: 256,
  /** A wait for a state may take so long. */
  waitMs: 600_000,
  /** A profile may take so long, and keep so many stacks. */
  profileMs: 600_000,
  profileStacks: 20_000,
  /** A kernel's command line, in UTF-8. */
  cmdlineBytes: 2048,
  /** A kernel, initrd or firmware. */
  bootFileBytes: 1 * GiB,
  /** A machine that has not parked its harts by then is marked failed. */
  parkDeadlineMs: 5_000,
  /** Flushing and closing the disks of a machine may take so long. */
  closeDeadlineMs: 30_000,
  /** What is kept of a machine's console. */
  consoleLogBytes: 1 * MiB,
  /** Input that the guest has not read yet, beyond which no more is taken. */
  consoleInputBytes: 64 * KiB,
  /** Output on its way from an I/O worker, beyond which it stays in the machine's ring. */
  consoleWindowBytes: 256 * KiB,

  // virtio
  /** Descriptors of a virtqueue, and of one chain (virtio 1.2, 2.7). */
  queueSize: 256,
  /** Data buffers of one request (seg_max): a chain has a header and a status too. */
  segmentCount: 254,
  /** Sectors of 512 bytes in one discard or write-zeroes request (virtio 1.2, 5.2.4). */
  discardSectors: 0x400000,

  // fleecing
  fleecingsPerVm: 16,
  /** All bitmaps of one machine together: 1 TiB at 64 KiB takes 2 MiB. */
  bitmapMemoryBytes: 1 * GiB,
  /** Bits of one bitmap: what fits an unsigned 32-bit index with room to round up. */
  bitmapBits: 2 ** 31,
  /** A dirty bitmap's name in UTF-8, as in QEMU. */
  bitmapNameBytes: 1023,
  bitmapsPerNode: 64,
  /** Largest min-cluster-size of copy-before-write. */
  cbwClusterBytes: 64 * MiB,
  /** Copies of one copy-before-write filter that run at the same time, and the size of each. */
  cbwCopyCount: 64,
  cbwCopyBytes: 1 * MiB,

  // qcow2
  /** Cached L2 tables of one image: 32 MiB describe 256 GiB in clusters of 64 KiB. */
  qcow2L2CacheBytes: 32 * MiB,
  /** Cached refcounts of one image: 2 MiB describe 64 GiB. */
  qcow2RefcountCacheBytes: 2 * MiB,
  /** Bytes, and ranges, that wait to be freed, beyond which metadata is written so that they can. */
  qcow2FreeBytes: 64 * MiB,
  qcow2FreeRanges: 16 * 1024,
  /** Memory of a check for its counts: a byte for each cluster in use, or four. */
  qcow2CheckBytes: 512 * MiB,
  /** Requests of one image's request to its file at the same time. */
  qcow2RequestsInFlight: 8,

  // NBD
  /** Data of one handshake option that is read. */
  nbdOptionBytes: 64 * KiB,
  /** Options of one handshake, beyond which the connection ends. */
  nbdOptionCount: 64,
  /** Meta contexts that one option may name. */
  nbdContextCount: 64,
  /** Data of one request: the 32 MiB that every server should take (NBD, "Size constraints"). */
  nbdPayloadBytes: 32 * MiB,
  /** A handshake that took longer ends the connection. */
  nbdHandshakeMs: 10_000,
  /** Requests of one connection that are worked on, and their bytes; more wait unread. */
  nbdRequestsInFlight: 64,
  nbdBytesInFlight: 64 * MiB,
  /** Extents of all contexts together in one answer to NBD_CMD_BLOCK_STATUS. */
  nbdExtentsPerReply: 64 * 1024,
  /** Longer options end the connection, options between nbdOptionBytes and this are skipped. */
  nbdOptionSkipBytes: 1 * MiB,
  /** Replies that wait for their client; beyond it none of its requests is executed. */
  nbdOutputBytes: 1 * MiB,
  /** What a unix socket may hold of its replies, beside; the system may allow less. */
  nbdUnixSendBytes: 1 * MiB,
  /** Work for one connection before the others of its worker get a turn. */
  nbdTurnMs: 4,
  /** A session that ends gives its client this long to take the last replies. */
  nbdCloseMs: 2_000,
  /** Connections to one server (a machine's I/O worker), beyond which new ones are closed. */
  nbdConnectionsPerVm: 256,
  /**
   * Requests and replies of all connections to one server together: beyond it none is begun. Where
   * none of it comes back for nbdSweepMs, the connection that holds most is cut off.
   */
  nbdBufferedBytesPerVm: 256 * MiB,
  nbdSweepMs: 5_000,
  /** In the middle of a request, or with replies that are not taken, a client may pause so long. */
  nbdStallMs: 15 * 60_000,
  /** Without any request a connection lasts so long. */
  nbdIdleMs: 24 * 3_600_000,
  /** A WebSocket frame of ours: what is fastest into browsers, with room for a reply's header. */
  nbdWebSocketFrameBytes: 256 * KiB + 64,
  /** Unacknowledged bytes between the control isolate and an I/O worker, each way. */
  nbdPortWindowBytes: 4 * MiB,
  /** Bytes that a WebSocket client may have queued here, beyond which its connection is closed. */
  nbdWebSocketQueueBytes: 40 * MiB,
  /** Bytes queued towards a WebSocket client, beyond which the server stops answering. */
  nbdWebSocketBufferedBytes: 4 * MiB,

  // monitor
  /** The tokens of one value on a monitor, in bytes and in number, and how deep it is nested. */
  qmpMessageBytes: 4 * MiB,
  qmpTokens: 128 * KiB,
  jsonDepth: 1024,
  /** Answers and events that wait for a client, beyond which it is cut off. */
  qmpOutputBytes: 32 * MiB,
  /** Clients of one monitor at a time. */
  qmpSessions: 64,
  /** Exports and objects that the clients of one monitor may make. */
  qmpExports: 256,
  qmpObjects: 256,
  /** Nodes on the way from an image to the last one of its backing chain. */
  backingChainDepth: 200,
  /** Jobs of one block layer, those that nobody dismissed included. */
  jobs: 256,
  /** Nodes of one block graph. */
  blockNodes: 4096,

  // HTTP
  /** A JSON body, and console input that waits for the guest. */
  requestBodyBytes: 1 * MiB,
  /** One read of an export through the I/O worker's channel. */
  exportReadBytes: 1 * MiB,
  /** Runs in one answer about the map of an export. */
  extentsPerAnswer: 1024,
  /** Tickets: how long each is good, and how many may be unused at a time. */
  ticketLifeMs: 60_000,
  ticketCount: 1024,
} as const;
