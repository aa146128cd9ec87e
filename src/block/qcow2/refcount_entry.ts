/**
 * One reference count in a refcount block: 2^order bits wide, big-endian; those narrower than a
 * byte are counted from its lowest bit up (qcow2 specification, "Host cluster management").
 *
 * @module
 */

/** The largest count of that width, as far as numbers are exact. */
export function maxCount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** 2 ** order - 1;
}

/** The count of that index. Beyond 2^53 it is not exact. */
export function getCount(view: DataView, index: number, order: number): number {
  switch (order) {
    case 4:
      return view.getUint16(index * 2);
    case 3:
      return view.getUint8(index);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return view.getUint32(index * 8) * 2 ** 32 + view.getUint32(index * 8 + 4);
    default: {
      const perByte = 8 >> order;
      const shift = (index % perByte) << order;
      return view.getUint8(Math.floor(index / perByte)) >> shift & ((1 << (1 << order)) - 1);
    }
  }
}

/** Sets the count of that index, which is no larger than `maxCount`. */
export function setCount(view: DataView, index: number, order: number, count: number): void {
  switch (order) {
    case 4:
      return view.setUint16(index * 2, count);
    case 3:
      return view.setUint8(index, count);
    case 5:
      return view.setUint32(index * 4, count);
    case 6:
      view.setUint32(index * 8, Math.floor(count / 2 ** 32));
      return view.setUint32(index * 8 + 4, count % 2 ** 32);
    default: {
      const perByte = 8 >> order;
      const at = Math.floor(index / perByte);
      const shift = (index % perByte) << order;
      const mask = ((1 << (1 << order)) - 1) << shift;
      view.setUint8(at, view.getUint8(at) & ~mask | count << shift);
    }
  }
}
