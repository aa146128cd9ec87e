/**
 * RISC-V instructions by hand: one function an instruction, as far as tests need them. Registers
 * are numbers; a program is an array of 32-bit words (two compressed instructions make one word).
 *
 * @module
 */

export const zero = 0;
export const ra = 1;
export const sp = 2;
export const t0 = 5;
export const t1 = 6;
export const t2 = 7;
export const s0 = 8;
export const a0 = 10;
export const a1 = 11;
export const a2 = 12;
export const a3 = 13;
export const a4 = 14;
export const a5 = 15;
export const t3 = 28;
export const t4 = 29;

/** funct7, rs2, rs1, funct3, rd, opcode. */
export interface FieldsR {
  opcode: number;
  funct3: number;
  funct7: number;
}

export function encodeR(fields: FieldsR, rd: number, rs1: number, rs2: number): number {
  const { opcode, funct3, funct7 } = fields;
  return ((funct7 << 25) | (rs2 << 20) | (rs1 << 15) | (funct3 << 12) | (rd << 7) | opcode) >>> 0;
}

export function encodeI(opcode: number, funct3: number, rd: number, rs1: number, imm: number) {
  return ((imm << 20) | (rs1 << 15) | (funct3 << 12) | (rd << 7) | opcode) >>> 0;
}

export function encodeS(opcode: number, funct3: number, rs1: number, rs2: number, imm: number) {
  const high = (imm >> 5) & 0x7f;
  return ((high << 25) | (rs2 << 20) | (rs1 << 15) | (funct3 << 12) | ((imm & 31) << 7) |
    opcode) >>>
    0;
}

export function encodeB(funct3: number, rs1: number, rs2: number, distance: number): number {
  return ((((distance >> 12) & 1) << 31) | (((distance >> 5) & 63) << 25) | (rs2 << 20) |
    (rs1 << 15) | (funct3 << 12) | (((distance >> 1) & 15) << 8) | (((distance >> 11) & 1) << 7) |
    0x63) >>> 0;
}

export const addi = (rd: number, rs1: number, imm: number) => encodeI(0x13, 0, rd, rs1, imm);
export const slli = (rd: number, rs1: number, shamt: number) => encodeI(0x13, 1, rd, rs1, shamt);
export const add = (rd: number, rs1: number, rs2: number) =>
  encodeR({ opcode: 0x33, funct3: 0, funct7: 0 }, rd, rs1, rs2);
export const lui = (rd: number, imm20: number) => ((imm20 << 12) | (rd << 7) | 0x37) >>> 0;
export const auipc = (rd: number, imm20: number) => ((imm20 << 12) | (rd << 7) | 0x17) >>> 0;

export function jal(rd: number, distance: number): number {
  return ((((distance >> 20) & 1) << 31) | (((distance >> 1) & 0x3ff) << 21) |
    (((distance >> 11) & 1) << 20) | (distance & 0xff000) | (rd << 7) | 0x6f) >>> 0;
}

export const jalr = (rd: number, rs1: number, imm: number) => encodeI(0x67, 0, rd, rs1, imm);
export const beq = (rs1: number, rs2: number, distance: number) => encodeB(0, rs1, rs2, distance);
export const bne = (rs1: number, rs2: number, distance: number) => encodeB(1, rs1, rs2, distance);

export const lb = (rd: number, rs1: number, imm: number) => encodeI(0x03, 0, rd, rs1, imm);
export const lw = (rd: number, rs1: number, imm: number) => encodeI(0x03, 2, rd, rs1, imm);
export const ld = (rd: number, rs1: number, imm: number) => encodeI(0x03, 3, rd, rs1, imm);
export const sb = (rs2: number, rs1: number, imm: number) => encodeS(0x23, 0, rs1, rs2, imm);
export const sw = (rs2: number, rs1: number, imm: number) => encodeS(0x23, 2, rs1, rs2, imm);
export const sd = (rs2: number, rs1: number, imm: number) => encodeS(0x23, 3, rs1, rs2, imm);

export const csrrw = (rd: number, csr: number, rs1: number) => encodeI(0x73, 1, rd, rs1, csr);
export const csrrs = (rd: number, csr: number, rs1: number) => encodeI(0x73, 2, rd, rs1, csr);
export const csrrc = (rd: number, csr: number, rs1: number) => encodeI(0x73, 3, rd, rs1, csr);
export const csrr = (rd: number, csr: number) => csrrs(rd, csr, zero);
export const csrw = (csr: number, rs1: number) => csrrw(zero, csr, rs1);
export const csrwi = (csr: number, value: number) => encodeI(0x73, 5, zero, value, csr);

export const ecall = 0x00000073;
export const ebreak = 0x00100073;
export const sret = 0x10200073;
export const mret = 0x30200073;
export const wfi = 0x10500073;
export const fenceI = 0x0000100f;
export const sfenceVma = 0x12000073;

export const lrw = (rd: number, rs1: number) =>
  encodeR({ opcode: 0x2f, funct3: 2, funct7: 0x02 << 2 }, rd, rs1, 0);
export const scw = (rd: number, rs1: number, rs2: number) =>
  encodeR({ opcode: 0x2f, funct3: 2, funct7: 0x03 << 2 }, rd, rs1, rs2);
export const amoaddW = (rd: number, rs1: number, rs2: number) =>
  encodeR({ opcode: 0x2f, funct3: 2, funct7: 0 }, rd, rs1, rs2);

/** Jumps to itself: how a test program ends. */
export const halt = 0x0000006f;

export const CSR = {
  fflags: 0x001,
  frm: 0x002,
  fcsr: 0x003,
  sstatus: 0x100,
  sie: 0x104,
  stvec: 0x105,
  scounteren: 0x106,
  senvcfg: 0x10a,
  sscratch: 0x140,
  sepc: 0x141,
  scause: 0x142,
  stval: 0x143,
  sip: 0x144,
  stimecmp: 0x14d,
  satp: 0x180,
  mstatus: 0x300,
  misa: 0x301,
  medeleg: 0x302,
  mideleg: 0x303,
  mie: 0x304,
  mtvec: 0x305,
  mcounteren: 0x306,
  menvcfg: 0x30a,
  mcountinhibit: 0x320,
  mscratch: 0x340,
  mepc: 0x341,
  mcause: 0x342,
  mtval: 0x343,
  mip: 0x344,
  pmpcfg0: 0x3a0,
  pmpaddr0: 0x3b0,
  tselect: 0x7a0,
  tdata1: 0x7a1,
  tdata2: 0x7a2,
  mcycle: 0xb00,
  minstret: 0xb02,
  time: 0xc01,
  instret: 0xc02,
  mvendorid: 0xf11,
  mhartid: 0xf14,
} as const;
