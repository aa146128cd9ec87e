/**
 * Operands that are likely to show mistakes of floating point: the borders, and seeded random
 * numbers whose exponents and significands meet in interesting ways.
 *
 * @module
 */
import { F32, F64, type Format, type Operation } from "./float_reference.ts";

type OperandType = Operation["operands"][number];

/** Both signs of numbers at and around every border of a format. */
export function specialNumbers(format: Format): bigint[] {
  const f = BigInt(format.fractionBits);
  const hidden = 1n << f;
  const infinity = ((1n << BigInt(format.exponentBits)) - 1n) << f;
  const bias = (1n << BigInt(format.exponentBits - 1)) - 1n;
  const one = bias << f;
  const power = (exponent: bigint) => (bias + exponent) << f;
  const magnitudes = [
    0n,
    1n,
    2n,
    3n,
    hidden >> 1n,
    hidden - 1n,
    hidden,
    hidden + 1n,
    2n * hidden,
    one - (hidden >> 1n) - hidden, // 0.375
    one - hidden - 1n, // below a half
    one - hidden, // a half
    one - 1n,
    one,
    one + 1n,
    one + (hidden >> 1n), // 1.5
    power(1n),
    power(1n) + (hidden >> 2n), // 2.5
    power(f) - 1n,
    power(f) + 1n,
    power(f + 1n) - 1n, // all ones before the point
    power(f + 1n),
    power(31n) - 1n,
    power(31n),
    power(32n) - 1n,
    power(32n),
    power(63n) - 1n,
    power(63n),
    power(64n) - 1n,
    power(64n),
    power(bias) - 1n,
    infinity - hidden, // the greatest power of two
    infinity - 1n,
    infinity,
    infinity + 1n, // signalling
    infinity + (hidden >> 1n) - 1n, // signalling
    infinity + (hidden >> 1n), // quiet
    infinity + hidden - 1n, // quiet
  ];
  if (format.bits === 64) {
    // Borders of integers and of singles, with their neighbours and midpoints.
    for (const x of [2 ** 31 - 1, 2 ** 31 - 0.5, 2 ** 31 + 0.5, 2 ** 31 + 1, 2 ** 32 - 0.5]) {
      magnitudes.push(bitsOf(x));
    }
    const greatest = 2 ** 128 - 2 ** 104;
    for (const x of [greatest, 2 ** 128 - 2 ** 103, 2 ** -126, 2 ** -126 - 2 ** -150, 2 ** -150]) {
      magnitudes.push(bitsOf(x) - 1n, bitsOf(x), bitsOf(x) + 1n);
    }
  }
  const sign = 1n << BigInt(format.bits - 1);
  return magnitudes.flatMap((magnitude) => [magnitude, magnitude | sign]);
}

function bitsOf(x: number): bigint {
  return new BigUint64Array(new Float64Array([x]).buffer)[0] ?? 0n;
}

/** Registers that hold integers at and around borders. */
export function specialIntegers(): bigint[] {
  const integers = [0n];
  for (const shift of [0n, 1n, 23n, 24n, 25n, 31n, 32n, 33n, 52n, 53n, 54n, 62n, 63n]) {
    for (const offset of [-2n, -1n, 0n, 1n, 2n, 3n]) integers.push((1n << shift) + offset);
  }
  // Ties and their neighbours, for both formats, with 64 and with 32 significant bits.
  for (const tie of [1n << 39n, 1n << 10n]) {
    for (const offset of [-1n, 0n, 1n]) {
      for (const odd of [0n, 2n]) integers.push((1n << 63n) + tie + odd * tie + offset);
    }
  }
  for (const low of [0x80n, 0x7fn, 0x81n, 0x180n]) integers.push(0x4000_0000n + low);
  return integers.flatMap((x) => [BigInt.asUintN(64, x), BigInt.asUintN(64, -x)]);
}

/** Special operands of a type. */
export function specialOperands(type: OperandType): bigint[] {
  return type === "integer" ? specialIntegers() : specialNumbers(type === "f32" ? F32 : F64);
}

/** A stream of random operands; the same seed gives the same stream. */
export class FloatCases {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 32 random bits (a counter, mixed). */
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return (x ^ (x >>> 15)) >>> 0;
  }

  /** A whole number below `limit`. */
  below(limit: number): number {
    return this.next() % limit;
  }

  bits64(): bigint {
    return (BigInt(this.next()) << 32n) | BigInt(this.next());
  }

  /** Operands of an operation. */
  operands(operation: Operation): bigint[] {
    const format = operation.operands[0] === "f32" ? F32 : F64;
    const operands = operation.operands.map((type) =>
      type === "integer" ? this.#integer() : this.#number(format)
    );
    const [a = 0n, b = 0n] = operands;
    if (operands.length === 2 && this.below(3) === 0) operands[1] = this.#neighbour(format, a);
    if (operands.length === 3 && this.below(2) === 0) {
      operands[2] = this.#nearProduct(format, a, b);
    }
    return operands;
  }

  #integer(): bigint {
    const x = this.#fraction(64) >> BigInt(this.below(64));
    return this.below(2) ? x : BigInt.asUintN(64, -x);
  }

  /** `bits` random bits, often only a few of them set, or a few of them clear. */
  #fraction(bits: number): bigint {
    const random = BigInt.asUintN(bits, this.bits64());
    const all = (1n << BigInt(bits)) - 1n;
    switch (this.below(6)) {
      case 0: // few bits at the end
        return random >> BigInt(this.below(bits));
      case 1: // few bits at the start
        return all & (random << BigInt(this.below(bits)));
      case 2: // ones, then random
        return all ^ (random >> BigInt(this.below(bits)));
      case 3: // one bit, and perhaps a neighbour's
        return all & ((1n << BigInt(this.below(bits))) + BigInt(this.below(3)));
      default:
        return random;
    }
  }

  #number(format: Format): bigint {
    if (this.below(12) === 0) {
      const special = specialNumbers(format);
      return special[this.below(special.length)] ?? 0n;
    }
    const fields = 2 ** format.exponentBits;
    const bias = fields / 2 - 1;
    const field = ((): number => {
      switch (this.below(8)) {
        case 0: // near the borders
          return this.below(2) ? this.below(4) : fields - 2 - this.below(4);
        case 1: // where products and quotients are subnormal, or squares overflow
          return Math.max(0, Math.floor(bias / 2) - format.fractionBits + this.below(80));
        case 2:
          return Math.min(fields - 2, bias + Math.floor(bias / 2) - 3 + this.below(6));
        case 3: // integers of 64 bits and somewhat more
          return bias + this.below(66);
        case 4: // for narrowing: around the single's subnormal numbers and overflow
          return Math.min(
            fields - 2,
            bias + (this.below(2) ? 126 + this.below(4) : -this.below(156)),
          );
        case 5:
          return this.below(fields - 1);
        default: // near one
          return bias - 4 + this.below(8);
      }
    })();
    return this.#assemble(format, Math.max(field, 0));
  }

  #assemble(format: Format, field: number): bigint {
    return (BigInt(this.below(2)) << BigInt(format.bits - 1)) |
      (BigInt(field) << BigInt(format.fractionBits)) | this.#fraction(format.fractionBits);
  }

  /** A number about as large as another one, or as much less as matters for its rounding. */
  #neighbour(format: Format, a: bigint): bigint {
    if (this.below(4) === 0) return a ^ (BigInt(this.next()) & 3n);
    const field = this.#field(format, a);
    const distance = this.below(3) ? this.below(3) : this.below(format.fractionBits + 4);
    return this.#assemble(format, Math.max(0, field - distance));
  }

  /** About minus a * b, so that much cancels, or about the size of its last places. */
  #nearProduct(format: Format, a: bigint, b: bigint): bigint {
    const fields = 2 ** format.exponentBits;
    const bias = fields / 2 - 1;
    const field = this.#field(format, a) + this.#field(format, b) - bias;
    const clamp = (x: number) => Math.min(Math.max(x, 0), fields - 2);
    const reach = format.fractionBits + 3;
    if (this.below(3) === 0) return this.#assemble(format, clamp(field - reach + this.below(6)));
    if (this.below(3) === 0) return this.#assemble(format, clamp(field + reach - this.below(6)));
    const product = format.bits === 64
      ? bitsOf(-numberOf(a) * numberOf(b))
      : singleBitsOf(-singleOf(a) * singleOf(b));
    return product ^ (this.below(2) ? BigInt(this.next() & 7) : 0n);
  }

  #field(format: Format, a: bigint): number {
    return Number((a >> BigInt(format.fractionBits)) & ((1n << BigInt(format.exponentBits)) - 1n));
  }
}

function numberOf(bits: bigint): number {
  return new Float64Array(new BigUint64Array([bits]).buffer)[0] ?? 0;
}

function singleOf(bits: bigint): number {
  return new Float32Array(new Uint32Array([Number(bits)]).buffer)[0] ?? 0;
}

function singleBitsOf(x: number): bigint {
  return BigInt(new Uint32Array(new Float32Array([x]).buffer)[0] ?? 0);
}
