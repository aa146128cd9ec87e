/**
 * RISC-V floating point once more, slowly and by other means than src/wasm/assembly/hart/float:
 * every finite number is a fraction of two bigints, every operation is done exactly, and one
 * function rounds fractions by comparing with the half. An oracle for tests.
 *
 * @module
 */

export const NX = 1;
export const UF = 2;
export const OF = 4;
export const DZ = 8;
export const NV = 16;

/** A binary format: bits of its fraction and its exponent field. */
export interface Format {
  bits: number;
  fractionBits: number;
  exponentBits: number;
}

export const F32: Format = { bits: 32, fractionBits: 23, exponentBits: 8 };
export const F64: Format = { bits: 64, fractionBits: 52, exponentBits: 11 };

/** What an operation gives: bits of the result and flags raised. */
export interface Outcome {
  result: bigint;
  flags: number;
}

type Value =
  | { kind: "nan"; isSignalling: boolean }
  | { kind: "infinity"; sign: number }
  /** (-1)^sign * top / bottom; zero has top 0. */
  | { kind: "finite"; sign: number; top: bigint; bottom: bigint };

function infinityOf(format: Format): bigint {
  return ((1n << BigInt(format.exponentBits)) - 1n) << BigInt(format.fractionBits);
}

function signOf(format: Format, sign: number): bigint {
  return BigInt(sign) << BigInt(format.bits - 1);
}

function nanOf(format: Format): bigint {
  return infinityOf(format) | (1n << BigInt(format.fractionBits - 1));
}

/** Exponent of the least normal number. */
function exponentMin(format: Format): number {
  return 2 - 2 ** (format.exponentBits - 1);
}

function decode(format: Format, bits: bigint): Value {
  const sign = Number((bits >> BigInt(format.bits - 1)) & 1n);
  const magnitude = BigInt.asUintN(format.bits - 1, bits);
  const infinity = infinityOf(format);
  if (magnitude > infinity) {
    return {
      kind: "nan",
      isSignalling: ((magnitude >> BigInt(format.fractionBits - 1)) & 1n) === 0n,
    };
  }
  if (magnitude === infinity) return { kind: "infinity", sign };
  const fraction = BigInt.asUintN(format.fractionBits, magnitude);
  const field = Number(magnitude >> BigInt(format.fractionBits));
  const significand = field === 0 ? fraction : fraction | (1n << BigInt(format.fractionBits));
  const exponent = exponentMin(format) + Math.max(field, 1) - 1 - format.fractionBits;
  return exponent >= 0
    ? { kind: "finite", sign, top: significand << BigInt(exponent), bottom: 1n }
    : { kind: "finite", sign, top: significand, bottom: 1n << BigInt(-exponent) };
}

/** An integer near top / bottom as the mode says, and whether it is the quotient. */
function roundFraction(
  sign: number,
  top: bigint,
  bottom: bigint,
  rm: number,
): { whole: bigint; isExact: boolean } {
  const whole = top / bottom;
  const twice = 2n * (top % bottom);
  if (twice === 0n) return { whole, isExact: true };
  const isUp = rm === 0
    ? twice > bottom || (twice === bottom && (whole & 1n) === 1n)
    : rm === 1
    ? false
    : rm === 2
    ? sign === 1
    : rm === 3
    ? sign === 0
    : twice >= bottom;
  return { whole: isUp ? whole + 1n : whole, isExact: false };
}

/** top / bottom in units of 2^exponent, rounded. */
function roundAt(sign: number, top: bigint, bottom: bigint, exponent: number, rm: number) {
  return exponent >= 0
    ? roundFraction(sign, top, bottom << BigInt(exponent), rm)
    : roundFraction(sign, top << BigInt(-exponent), bottom, rm);
}

function bitLength(x: bigint): number {
  return x.toString(2).length;
}

/** The e of 2^e <= top / bottom < 2^(e+1). */
function exponentOf(top: bigint, bottom: bigint): number {
  const guess = bitLength(top) - bitLength(bottom);
  const isBelow = guess >= 0 ? top < bottom << BigInt(guess) : top << BigInt(-guess) < bottom;
  return isBelow ? guess - 1 : guess;
}

function encode(format: Format, sign: number, top: bigint, bottom: bigint, rm: number): Outcome {
  if (top === 0n) return { result: signOf(format, sign), flags: 0 };
  const least = exponentMin(format);
  const exponent = exponentOf(top, bottom);
  const hidden = 1n << BigInt(format.fractionBits);
  const quantum = Math.max(exponent, least) - format.fractionBits;
  const { whole, isExact } = roundAt(sign, top, bottom, quantum, rm);
  // A subnormal number's field is 0, and one more is the least normal: the sum does both.
  const field = Math.max(exponent, least) - least;
  const magnitude = (BigInt(field) << BigInt(format.fractionBits)) + whole;
  const infinity = infinityOf(format);
  if (magnitude >= infinity) {
    const isInfinite = rm === 0 || rm === 4 || (rm === 2 && sign === 1) || (rm === 3 && sign === 0);
    const saturated = isInfinite ? infinity : infinity - 1n;
    return { result: signOf(format, sign) | saturated, flags: OF | NX };
  }
  const result = signOf(format, sign) | magnitude;
  if (isExact) return { result, flags: 0 };
  // Tiny after rounding: as if there were no least exponent.
  const unbounded = roundAt(sign, top, bottom, exponent - format.fractionBits, rm).whole;
  const isTiny = exponent < least - 1 || (exponent === least - 1 && unbounded < 2n * hidden);
  return { result, flags: isTiny ? UF | NX : NX };
}

/** A NaN result: invalid if an operand signals, or if none was NaN. */
function nanOutcome(format: Format, ...operands: Value[]): Outcome {
  const nans = operands.filter((value) => value.kind === "nan");
  const isInvalid = nans.length === 0 || nans.some((value) => value.isSignalling);
  return { result: nanOf(format), flags: isInvalid ? NV : 0 };
}

function addValues(format: Format, a: Value, b: Value, rm: number): Outcome {
  if (a.kind === "nan" || b.kind === "nan") return nanOutcome(format, a, b);
  if (a.kind === "infinity" || b.kind === "infinity") {
    if (a.kind === b.kind && a.sign !== b.sign) return nanOutcome(format);
    const sign = a.kind === "infinity" ? a.sign : b.sign;
    return { result: signOf(format, sign) | infinityOf(format), flags: 0 };
  }
  const sum = (a.sign ? -1n : 1n) * a.top * b.bottom + (b.sign ? -1n : 1n) * b.top * a.bottom;
  if (sum === 0n) {
    const sign = a.sign === b.sign ? a.sign : Number(rm === 2);
    return { result: signOf(format, sign), flags: 0 };
  }
  return encode(format, Number(sum < 0n), sum < 0n ? -sum : sum, a.bottom * b.bottom, rm);
}

function negate(value: Value): Value {
  return value.kind === "nan" ? value : { ...value, sign: 1 - value.sign };
}

/** The exact product; undefined if it is infinity times zero. Not for NaN. */
function multiplyValues(a: Value, b: Value): Value | undefined {
  if (a.kind === "nan" || b.kind === "nan") throw new TypeError("NaN");
  const sign = a.sign ^ b.sign;
  if (a.kind === "finite" && b.kind === "finite") {
    return { kind: "finite", sign, top: a.top * b.top, bottom: a.bottom * b.bottom };
  }
  const isZero = [a, b].some((value) => value.kind === "finite" && value.top === 0n);
  return isZero ? undefined : { kind: "infinity", sign };
}

function encodeValue(format: Format, value: Value, rm: number): Outcome {
  if (value.kind === "nan") return nanOutcome(format, value);
  if (value.kind === "finite") return encode(format, value.sign, value.top, value.bottom, rm);
  return { result: signOf(format, value.sign) | infinityOf(format), flags: 0 };
}

function multiply(format: Format, a: Value, b: Value, rm: number): Outcome {
  if (a.kind === "nan" || b.kind === "nan") return nanOutcome(format, a, b);
  const product = multiplyValues(a, b);
  return product === undefined ? nanOutcome(format) : encodeValue(format, product, rm);
}

function fuse(format: Format, a: Value, b: Value, c: Value, rm: number): Outcome {
  if (a.kind === "nan" || b.kind === "nan") return nanOutcome(format, a, b, c);
  const product = multiplyValues(a, b);
  // Invalid whatever is added, a quiet NaN too.
  return product === undefined ? nanOutcome(format) : addValues(format, product, c, rm);
}

function divide(format: Format, a: Value, b: Value, rm: number): Outcome {
  if (a.kind === "nan" || b.kind === "nan") return nanOutcome(format, a, b);
  const sign = a.sign ^ b.sign;
  if (a.kind === "infinity") {
    if (b.kind === "infinity") return nanOutcome(format);
    return { result: signOf(format, sign) | infinityOf(format), flags: 0 };
  }
  if (b.kind === "infinity") return { result: signOf(format, sign), flags: 0 };
  if (b.top === 0n) {
    if (a.top === 0n) return nanOutcome(format);
    return { result: signOf(format, sign) | infinityOf(format), flags: DZ };
  }
  return encode(format, sign, a.top * b.bottom, a.bottom * b.top, rm);
}

/** Floor of the square root, by Newton. */
function rootOf(x: bigint): bigint {
  if (x < 2n) return x;
  let root = 1n << BigInt((bitLength(x) + 1) >> 1);
  for (;;) {
    const next = (root + x / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}

function squareRoot(format: Format, a: Value, rm: number): Outcome {
  if (a.kind === "nan") return nanOutcome(format, a);
  if (a.kind === "finite" && a.top === 0n) return { result: signOf(format, a.sign), flags: 0 };
  if (a.sign === 1) return nanOutcome(format);
  if (a.kind === "infinity") return { result: infinityOf(format), flags: 0 };
  // sqrt(top / bottom) = sqrt(top * bottom) / bottom, with 64 more places and a sticky one.
  const radicand = (a.top * a.bottom) << 128n;
  const root = rootOf(radicand);
  const sticky = root * root === radicand ? 0n : 1n;
  return encode(format, 0, 2n * root + sticky, a.bottom << 65n, rm);
}

/** minimumNumber, maximumNumber. */
function extreme(format: Format, bits: bigint[], isMax: boolean): Outcome {
  const [x = 0n, y = 0n] = bits;
  const a = decode(format, x);
  const b = decode(format, y);
  const isSignalling = [a, b].some((value) => value.kind === "nan" && value.isSignalling);
  const flags = isSignalling ? NV : 0;
  if (a.kind === "nan") return { result: b.kind === "nan" ? nanOf(format) : y, flags };
  if (b.kind === "nan") return { result: x, flags };
  // Bits of one sign are ordered as the numbers are; negative ones backwards.
  const key = (value: bigint) => value >> BigInt(format.bits - 1) ? -value : value + 1n;
  return { result: (key(x) < key(y)) !== isMax ? x : y, flags };
}

function compare(a: Value, b: Value, relation: "eq" | "lt" | "le"): Outcome {
  if (a.kind === "nan" || b.kind === "nan") {
    const isSignalling = [a, b].some((value) => value.kind === "nan" && value.isSignalling);
    return { result: 0n, flags: relation !== "eq" || isSignalling ? NV : 0 };
  }
  const difference = order(a) - order(b);
  const [x, y] = difference === 0 && a.kind === "finite" && b.kind === "finite"
    ? [signed(a) * b.bottom, signed(b) * a.bottom]
    : [BigInt(difference), 0n];
  const holds = relation === "eq" ? x === y : relation === "lt" ? x < y : x <= y;
  return { result: BigInt(holds), flags: 0 };
}

function order(value: Exclude<Value, { kind: "nan" }>): number {
  return value.kind === "finite" ? 0 : value.sign ? -1 : 1;
}

function signed(value: Extract<Value, { kind: "finite" }>): bigint {
  return value.sign ? -value.top : value.top;
}

function classify(format: Format, value: Value): Outcome {
  const bit = ((): number => {
    if (value.kind === "nan") return value.isSignalling ? 8 : 9;
    if (value.kind === "infinity") return value.sign ? 0 : 7;
    if (value.top === 0n) return value.sign ? 3 : 4;
    const isNormal = exponentOf(value.top, value.bottom) >= exponentMin(format);
    if (isNormal) return value.sign ? 1 : 6;
    return value.sign ? 2 : 5;
  })();
  return { result: 1n << BigInt(bit), flags: 0 };
}

/** To an integer of `bits` bits, as 64 bits of a register. */
function toInteger(value: Value, isSigned: boolean, bits: number, rm: number): Outcome {
  const least = isSigned ? -(1n << BigInt(bits - 1)) : 0n;
  const greatest = (1n << BigInt(isSigned ? bits - 1 : bits)) - 1n;
  const extend = (x: bigint) => BigInt.asUintN(64, BigInt.asIntN(bits, x));
  if (value.kind !== "finite") {
    const isNegative = value.kind === "infinity" && value.sign === 1;
    return { result: extend(isNegative ? least : greatest), flags: NV };
  }
  const { whole, isExact } = roundFraction(value.sign, value.top, value.bottom, rm);
  const rounded = value.sign ? -whole : whole;
  if (rounded < least) return { result: extend(least), flags: NV };
  if (rounded > greatest) return { result: extend(greatest), flags: NV };
  return { result: extend(rounded), flags: isExact ? 0 : NX };
}

function fromInteger(
  format: Format,
  register: bigint,
  isSigned: boolean,
  bits: number,
  rm: number,
): Outcome {
  const x = isSigned ? BigInt.asIntN(bits, register) : BigInt.asUintN(bits, register);
  return encode(format, Number(x < 0n), x < 0n ? -x : x, 1n, rm);
}

/** One operation: the name that the module exports, its operands, the reference. */
export interface Operation {
  name: string;
  /** What its operands are. */
  operands: ("f32" | "f64" | "integer")[];
  /** How many bits its result has. */
  resultBits: 32 | 64;
  /** Does it take a rounding mode? */
  isRounded: boolean;
  evaluate(operands: bigint[], rm: number): Outcome;
}

/** Every operation, in the order of its number in float_oracle.c. */
export const OPERATIONS: readonly Operation[] = [
  ...operationsOf("f32", F32),
  ...operationsOf("f64", F64),
  {
    name: "f64ToF32",
    operands: ["f64"],
    resultBits: 32,
    isRounded: true,
    evaluate: ([a = 0n], rm) => encodeValue(F32, decode(F64, a), rm),
  },
  {
    name: "f32ToF64",
    operands: ["f32"],
    resultBits: 64,
    isRounded: false,
    evaluate: ([a = 0n]) => encodeValue(F64, decode(F32, a), 0),
  },
];

function operationsOf(type: "f32" | "f64", format: Format): Operation[] {
  const value = (bits: bigint | undefined) => decode(format, bits ?? 0n);
  const resultBits = type === "f32" ? 32 : 64;
  const rounded = (
    name: string,
    count: number,
    evaluate: (operands: Value[], rm: number) => Outcome,
  ): Operation => ({
    name: type + name,
    operands: new Array<typeof type>(count).fill(type),
    resultBits,
    isRounded: true,
    evaluate: (operands, rm) => evaluate([0, 1, 2].map((index) => value(operands[index])), rm),
  });
  const plain = (
    name: string,
    count: number,
    bits: 32 | 64,
    evaluate: (operands: bigint[]) => Outcome,
  ): Operation => ({
    name: type + name,
    operands: new Array<typeof type>(count).fill(type),
    resultBits: bits,
    isRounded: false,
    evaluate,
  });
  const zero = value(0n);
  const conversions = ([["I32", true, 32], ["U32", false, 32], ["I64", true, 64], [
    "U64",
    false,
    64,
  ]] as const).flatMap(([suffix, isSigned, bits]): Operation[] => [
    {
      name: `${type}To${suffix}`,
      operands: [type],
      resultBits: 64,
      isRounded: true,
      evaluate: ([a], rm) => toInteger(value(a), isSigned, bits, rm),
    },
    {
      name: `${type}From${suffix}`,
      operands: ["integer"],
      resultBits,
      isRounded: true,
      evaluate: ([a = 0n], rm) => fromInteger(format, a, isSigned, bits, rm),
    },
  ]);
  return [
    rounded("Add", 2, ([a = zero, b = zero], rm) => addValues(format, a, b, rm)),
    rounded("Sub", 2, ([a = zero, b = zero], rm) => addValues(format, a, negate(b), rm)),
    rounded("Mul", 2, ([a = zero, b = zero], rm) => multiply(format, a, b, rm)),
    rounded("Div", 2, ([a = zero, b = zero], rm) => divide(format, a, b, rm)),
    rounded("Sqrt", 1, ([a = zero], rm) => squareRoot(format, a, rm)),
    rounded("Fma", 3, ([a = zero, b = zero, c = zero], rm) => fuse(format, a, b, c, rm)),
    plain("Min", 2, resultBits, (operands) => extreme(format, operands, false)),
    plain("Max", 2, resultBits, (operands) => extreme(format, operands, true)),
    plain("Eq", 2, 32, ([a, b]) => compare(value(a), value(b), "eq")),
    plain("Lt", 2, 32, ([a, b]) => compare(value(a), value(b), "lt")),
    plain("Le", 2, 32, ([a, b]) => compare(value(a), value(b), "le")),
    plain("Classify", 1, 32, ([a]) => classify(format, value(a))),
    ...conversions,
  ];
}
