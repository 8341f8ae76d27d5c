//! What [`load`] writes to guest memory, and that any content of a file is loaded or is an error with one line of text.

#![expect(clippy::cast_possible_truncation, reason = "addresses and lengths have 32 bits")]

#[path = "../../tests/common/images.rs"]
mod images;

use std::io::Write;

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;
use vm_memory::ByteValued;
use vmm_sys_util::tempfile::TempFile;

use super::input_file::InputFile;
use super::layout::{ACPI_TABLES, ACPI_TABLES_END, PAGE_TABLES, memory_map, ram_ranges};
use super::*;
use images::{bzimage, cpio, elf, pvh, with_note};

const MIB: u64 = 1 << 20;
const CODE: &[u8] = b"\xb0\x07\xe6\xf4";

fn memory(size: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> = ram_ranges(size).map(|(start, len)| (GuestAddress(start), len as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn file(content: &[u8]) -> TempFile {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(content).unwrap();
    file
}

/// Loads a guest made of these files into `memory`.
fn load_into(memory: &GuestMemoryMmap, kernel: &[u8], archives: &[&[u8]], cmdline: &str) -> Result<Entry, Error> {
    let kernel = file(kernel);
    let archives: Vec<_> = archives.iter().map(|archive| file(archive)).collect();
    let initramfs: Vec<_> = archives.iter().map(|archive| archive.as_path().to_owned()).collect();
    let image = Image::File(kernel.as_path().to_owned());
    load(memory, &BootParams { initramfs: &initramfs, cmdline, ..params(&image) })
}

/// A guest with one vCPU, without initramfs and devices.
fn params(image: &Image) -> BootParams<'_> {
    let (initramfs, initramfs_source, cmdline) = (&[], None, "");
    BootParams { image, initramfs, initramfs_source, cmdline, cpus: 1, second_serial: false, virtio_devices: 0 }
}

fn bytes(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn object<T: ByteValued>(memory: &GuestMemoryMmap, at: u64) -> T {
    memory.read_obj(GuestAddress(at)).unwrap()
}

// ---- What is where -------------------------------------------------------------------------------------------------

#[test]
fn an_elf_image_is_entered_at_its_entry_point_with_a_zero_page() {
    let memory = memory(64 * MIB);
    let cmdline = "a=b,c \"d e\" -- f";
    let entry = load_into(&memory, &elf(CODE), &[], cmdline).unwrap();
    let expected = Entry {
        protocol: Protocol::Elf,
        address: GuestAddress(MIB),
        is_linux: false,
        boot_data: GuestAddress(ZERO_PAGE),
    };
    assert_eq!(entry, expected);
    assert_eq!(bytes(&memory, MIB, CODE.len()), CODE);
    assert_eq!(bytes(&memory, COMMAND_LINE, cmdline.len() + 1), format!("{cmdline}\0").as_bytes());

    let params: boot_params = object(&memory, ZERO_PAGE);
    let header = params.hdr;
    assert_eq!(({ header.header }, { header.boot_flag }, header.type_of_loader), (0x5372_6448, 0xaa55, 0xff));
    assert_eq!((u64::from(header.cmd_line_ptr), { params.acpi_rsdp_addr }), (COMMAND_LINE, ACPI_TABLES));
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0, 0));
    let map =
        params.e820_table[..params.e820_entries.into()].iter().map(|it| ({ it.addr }, { it.size }, { it.r#type }));
    let expected = memory_map(64 * MIB).map(|(start, len, kind)| (start, len, kind as u32));
    assert_eq!(map.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode_with_its_own_header() {
    let memory = memory(64 * MIB);
    let image = bzimage(CODE);
    let entry = load_into(&memory, &image, &[], "").unwrap();
    assert_eq!((entry.protocol, entry.address.0), (Protocol::BzImage, MIB + 0x200));
    assert_eq!(bytes(&memory, entry.address.0, CODE.len()), CODE);
    let params: boot_params = object(&memory, ZERO_PAGE);
    assert_eq!(({ params.hdr.version }, { params.hdr.pref_address }, { params.hdr.xloadflags }), (0x20f, MIB, 1));
}

#[test]
fn an_elf_image_with_a_pvh_note_is_entered_through_it() {
    let memory = memory(64 * MIB);
    let archive = cpio("init", b"x");
    let entry = load_into(&memory, &pvh(CODE, MIB as u32 + 2), &[&archive], "hello").unwrap();
    assert_eq!((entry.protocol, entry.address.0, entry.boot_data.0), (Protocol::Pvh, MIB + 2, PVH_START_INFO));
    let info: hvm_start_info = object(&memory, PVH_START_INFO);
    assert_eq!((info.magic, info.cmdline_paddr, info.rsdp_paddr), (0x336e_c578, COMMAND_LINE, ACPI_TABLES));
    assert_eq!((info.nr_modules, info.memmap_entries), (1, 3));
    let module: hvm_modlist_entry = object(&memory, info.modlist_paddr);
    assert_eq!(bytes(&memory, module.paddr, module.size as usize), archive);
    let first: hvm_memmap_table_entry = object(&memory, info.memmap_paddr);
    assert_eq!((first.addr, first.size, first.type_), (0, 0xa0000, 1));
}

#[test]
fn a_note_of_linux_or_of_the_c_library_names_what_an_image_is() {
    let memory = memory(64 * MIB);
    let load = |kind, name: &[u8]| load_into(&memory, &with_note(CODE, kind, name, 0), &[], "");
    assert!(load(0x100, b"Linux\0").unwrap().is_linux); // LINUX_ELFNOTE_BUILD_SALT
    assert!(!load(3, b"GNU\0").unwrap().is_linux); // NT_GNU_BUILD_ID
    let error = load(1, b"GNU\0").unwrap_err().to_string();
    assert!(error.ends_with("it is a program for Linux, not a kernel"), "{error}");
}

#[test]
fn archives_follow_each_other_at_multiples_of_four_after_four_zeros() {
    let memory = memory(64 * MIB);
    let (first, second) = (b"\x1f\x8b\x08\0.", cpio("init", b"x")); // five bytes of gzip, as far as can be seen
    load_into(&memory, &elf(CODE), &[first, &second], "").unwrap();
    let header = object::<boot_params>(&memory, ZERO_PAGE).hdr;
    let (start, len) = (u64::from(header.ramdisk_image), header.ramdisk_size as usize);
    assert_eq!((start % PAGE_SIZE, len), (0, 12 + second.len()));
    assert_eq!(bytes(&memory, start, len), [&first[..], &[0; 7], &second].concat());
}

#[test]
fn the_first_4_gib_are_mapped_to_themselves() {
    let memory = memory(2 * MIB);
    load_into(&memory, &elf(CODE), &[], "").unwrap();
    let table = |at: u64, index: u64| object::<u64>(&memory, (at & !0xfff) + index * 8);
    for address in (0..4 << 30).step_by(2 << 20) {
        let entry = table(table(table(PAGE_TABLES, 0), address >> 30), address >> 21 & 511);
        assert_eq!(entry, address | 0x83, "present, writable, 2 MiB");
    }
}

#[test]
fn acpi_tables_add_up_for_any_number_of_vcpus() {
    let memory = memory(2 * MIB);
    for cpus in [1, 2, 4, 254] {
        let image = Image::Raw(CODE);
        let devices = BootParams { cpus, second_serial: true, virtio_devices: 17, ..params(&image) };
        acpi::write(&memory, &devices).unwrap();
        let sum = |at: u64, len: usize| bytes(&memory, at, len).iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(ACPI_TABLES, 20), sum(ACPI_TABLES, 36)), (0, 0), "RSDP");
        let table = |at: u64, signature: &[u8; 4]| {
            let len = object::<u32>(&memory, at + 4) as usize;
            assert_eq!((&bytes(&memory, at, 4)[..], sum(at, len)), (&signature[..], 0));
            assert!(at + len as u64 <= ACPI_TABLES_END);
            bytes(&memory, at, len)
        };
        let xsdt: u64 = object(&memory, ACPI_TABLES + 24);
        table(xsdt, b"XSDT");
        let fadt = table(object(&memory, xsdt + 36), b"FACP");
        let madt = table(object(&memory, xsdt + 44), b"APIC");
        let dsdt = table(u64::from_le_bytes(fadt[140..148].try_into().unwrap()), b"DSDT");
        assert!(dsdt.windows(4).any(|name| name == b"_S5_"));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "hardware-reduced, with a reset register");
        assert_eq!((fadt[116], fadt[120], fadt[128]), (1, 0x02, 1), "the reset register: port 0x602, value 1");
        assert_eq!(fadt[109] & 0b10_0100, 0b10_0100, "no VGA, no clock");
        let (mut lapics, mut at) = (Vec::new(), 44);
        while at < madt.len() {
            if madt[at] == 0 {
                lapics.push(madt[at + 3]);
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(lapics, (0..cpus).collect::<Vec<_>>());
    }
}

// ---- What does not fit ---------------------------------------------------------------------------------------------

#[test]
fn a_command_line_may_be_as_long_as_the_kernel_accepts_and_no_longer() {
    let memory = memory(2 * MIB);
    let with_max = |max: u32| {
        let mut image = bzimage(CODE);
        image[images::CMDLINE_SIZE..][..4].copy_from_slice(&max.to_le_bytes());
        image
    };
    for (image, max) in [(elf(CODE), 2047), (with_max(255), 255), (with_max(0), 2047), (with_max(u32::MAX), 65535)] {
        assert!(load_into(&memory, &image, &[], &"x".repeat(max)).is_ok());
        let error = load_into(&memory, &image, &[], &"x".repeat(max + 1)).unwrap_err();
        assert!(matches!(error, Error::CommandLine { len, max: limit } if (len, limit) == (max + 1, max)), "{error}");
    }
}

#[test]
fn too_little_memory_is_an_error_with_both_sizes_and_a_suggestion() {
    let error = load_into(&memory(4 * MIB), &elf(&vec![0; 3 << 20]), &[&cpio("data", &[0; 1 << 20])], "").unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("guest memory of 4M is too small: kernel '"), "{text}");
    assert!(text.ends_with("' needs 4M, the initramfs 2M; try --memory 64M"), "{text}");
}

#[test]
fn a_bzimage_too_short_for_its_entry_is_refused_wherever_it_wants_to_be() {
    for address in [MIB, u64::MAX - 20] {
        let mut image = bzimage(CODE);
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(images::SETUP_SECTS, &[2]); // one more sector of set-up code leaves 16 bytes of kernel
        put(images::SYSSIZE, &[1, 0]);
        put(images::INIT_SIZE, &[0; 4]);
        put(images::PREF_ADDRESS, &address.to_le_bytes());
        let error = load_into(&memory(2 * MIB), &image, &[], "").unwrap_err();
        assert!(error.to_string().ends_with("it is too short to have a 64-bit entry"), "{error}");
    }
}

/// A kernel that ends at `end` and takes an initramfs up to `initramfs_max`.
fn kernel(end: u64, initramfs_max: u64) -> Kernel {
    let file = InputFile::open(file(b"x").as_path(), "kernel").unwrap();
    let initramfs_end = initramfs_max + 1;
    Kernel {
        file,
        entry: HIGH_RAM,
        protocol: Protocol::Elf,
        end,
        initramfs_end,
        cmdline_max: 0,
        setup: None,
        is_linux: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_initramfs_gets_a_range_that_the_kernel_accepts_or_an_error(
        ram in (2 * MIB..5 << 30).prop_map(|ram| ram & !0xfff),
        end in MIB..4 << 30,
        max in prop_oneof![Just(0x7fff_ffffu64), Just(u32::MAX.into()), 0..1u64 << 32],
        len in prop_oneof![Just(0), 1..64 * MIB, 1..4u64 << 30],
    ) {
        let kernel = kernel(end, max);
        let low = ram.min(MMIO_GAP);
        match find_range(&memory(ram), &kernel, len) {
            Ok(found) => {
                prop_assert!(end <= low);
                prop_assert_eq!(found.end - found.start, len);
                if len > 0 {
                    prop_assert_eq!(found.start % PAGE_SIZE, 0);
                    prop_assert!(found.start >= end && found.start + len <= low && found.start + len - 1 <= max);
                }
            }
            Err(Error::NoRoom { suggestion, .. }) => {
                prop_assert!(end > low || low.min(max + 1).saturating_sub(len) & !0xfff < end);
                prop_assert!(find_range(&memory(suggestion.0), &kernel, len).is_ok(), "--memory {suggestion}");
            }
            Err(_) => {
                let room = MMIO_GAP.min(max + 1).saturating_sub(end + PAGE_SIZE);
                prop_assert!(len > room || end + PAGE_SIZE > MMIO_GAP.min(max + 1));
            }
        }
    }

    #[test]
    fn the_memory_map_covers_all_ram_but_the_hole_in_order(pages in 512..3u64 << 20) {
        let size = pages * PAGE_SIZE;
        let mut last = 0;
        let mut ram = 0;
        for (start, len, kind) in memory_map(size) {
            prop_assert!(start >= last && len > 0 && start % PAGE_SIZE == 0 && len % PAGE_SIZE == 0);
            prop_assert!(start + len <= MMIO_GAP || start >= layout::MMIO_GAP_END);
            last = start + len;
            ram += if kind == layout::MemoryKind::Ram { len } else { 0 };
        }
        prop_assert_eq!(ram, size - (HIGH_RAM - layout::LOW_RAM_END));
    }
}

// ---- Invalid files -------------------------------------------------------------------------------------------------

/// Changes of a file: numbers of one to eight bytes, often extreme ones, at the offsets `fields` or in `near`.
fn changes(fields: &'static [usize], near: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(usize, usize, u64)>> {
    let at = prop_oneof![proptest::sample::select(fields), near];
    let number = prop_oneof![
        proptest::sample::select(vec![0, 1, MIB - 1, MIB, 1 << 31, u32::MAX.into(), 1 << 32, 1 << 63, u64::MAX]),
        (0..4096u64).prop_map(|less| u64::MAX - less),
        0..64 * MIB,
        any::<u64>(),
    ];
    proptest::collection::vec((at, proptest::sample::select(vec![1, 2, 4, 8]), number), 1..5)
}

/// `image` with `changes` made to it, cut off at `len` if that is shorter.
fn changed(mut image: Vec<u8>, changes: &[(usize, usize, u64)], len: usize) -> Vec<u8> {
    for &(at, width, number) in changes {
        if let Some(place) = image.get_mut(at..at + width) {
            place.copy_from_slice(&number.to_le_bytes()[..width]);
        }
    }
    image.truncate(len);
    image
}

/// Loads `image`. The result is an entry in RAM or an error of one line.
fn load_any(image: &[u8]) -> Result<(), TestCaseError> {
    let size = 8 * MIB;
    match load_into(&memory(size), image, &[], "") {
        Ok(entry) => prop_assert!((HIGH_RAM..size).contains(&entry.address.0), "{:?}", entry),
        Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
    }
    Ok(())
}

/// A length at which to cut a file off; in most cases its own.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(usize::MAX), 1 => 0..3000usize]
}

const BZIMAGE_FIELDS: &[usize] = &[
    images::SETUP_SECTS,
    images::SYSSIZE,
    images::VERSION,
    images::INITRD_ADDR_MAX,
    0x234,
    images::XLOADFLAGS,
    images::PREF_ADDRESS,
    images::INIT_SIZE,
];
/// The ELF header's entry, offset, sizes; and of both program headers type, offset, address and sizes.
const ELF_FIELDS: &[usize] = &[24, 32, 54, 56, 64, 72, 88, 96, 104, 112, 120, 128, 144, 152, 160, 168];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bzimage_header_is_loaded_or_is_an_error(
        changes in changes(BZIMAGE_FIELDS, images::SETUP_HEADER),
        len in length(),
    ) {
        load_any(&changed(bzimage(CODE), &changes, len))?;
    }

    #[test]
    fn any_elf_header_is_loaded_or_is_an_error(changes in changes(ELF_FIELDS, 0..200), len in length()) {
        load_any(&changed(pvh(CODE, MIB as u32), &changes, len))?;
    }

    #[test]
    fn any_bytes_after_a_magic_number_are_loaded_or_are_an_error(
        magic in proptest::sample::select(vec![&b""[..], b"\x7fELF\x02\x01", b"\x1f\x8b"]),
        noise in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        load_any(&[magic, &noise].concat())?;
    }

    #[test]
    fn any_archive_is_checked_without_a_panic(
        changes in changes(&[0, 54, 94, 110], 0..300),
        len in length(),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let archive = [changed(cpio("init", b"#!/bin/sh"), &changes, len), tail].concat();
        if let Err(error) = load_into(&memory(8 * MIB), &elf(CODE), &[&archive], "") {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

/// The number of inodes of a tmpfs is its maximum size in pages.
#[test]
fn many_small_files_do_not_fit_in_a_tmpfs() {
    let fits = |unpacked, entries| Written { len: 0, unpacked, entries }.fits_tmpfs(480 * MIB);
    assert!(fits(200 * MIB, 50_000) && !fits(220 * MIB, 50_000));
    assert!(!fits(70 * MIB, 70_000), "it has 61,440");
}

// ---- Generated archives --------------------------------------------------------------------------------------------

/// Writes an archive of `len` bytes, all of them `BYTE`; fails if `len` is 0.
#[derive(Debug)]
struct Generated(Written);

const BYTE: u8 = 0x5a;

impl InitramfsSource for Generated {
    fn name(&self) -> String {
        "generated".to_owned()
    }

    fn write(&self, memory: &GuestMemoryMmap, range: Range<u64>) -> Result<Written, SourceError> {
        let len = self.0.len.min(range.end - range.start);
        memory.write_slice(&vec![BYTE; len as usize], GuestAddress(range.start))?;
        if len > 0 { Ok(self.0) } else { Err("it failed".into()) }
    }
}

/// Loads `kernel`, `archive`, and a generated archive of `len` bytes that takes `unpacked` bytes when it is unpacked.
fn generate(memory: &GuestMemoryMmap, kernel: &[u8], archive: &[u8], len: u64, unpacked: u64) -> Result<Entry, Error> {
    let (kernel, archive) = (file(kernel), file(archive));
    let image = Image::File(kernel.as_path().to_owned());
    let source = Generated(Written { len, unpacked, entries: 3 });
    let initramfs = &[archive.as_path().to_owned()];
    load(memory, &BootParams { initramfs, initramfs_source: Some(&source), cmdline: "quiet", ..params(&image) })
}

#[test]
fn a_generated_archive_follows_the_files_and_the_kernel_gets_their_sum() {
    let memory = memory(128 * MIB);
    let archive = cpio("init", b"x");
    for (unpacked, cmdline) in [(5, "quiet\0"), (60 * MIB, "rootfstype=ramfs quiet\0")] {
        generate(&memory, &bzimage(CODE), &archive, 1000, unpacked).unwrap();
        let header = object::<boot_params>(&memory, ZERO_PAGE).hdr;
        let (start, len) = (u64::from(header.ramdisk_image), header.ramdisk_size as usize);
        assert_eq!((start, len), (2 * MIB, archive.len() + 4 + 1000));
        assert_eq!(bytes(&memory, start, len), [&archive[..], &[0; 4], &[BYTE; 1000]].concat());
        assert_eq!(bytes(&memory, COMMAND_LINE, cmdline.len()), cmdline.as_bytes());
        assert_eq!({ header.cmdline_size } as usize, cmdline.len() - 1);
    }
    let error = generate(&memory, &bzimage(CODE), &archive, 0, 0).unwrap_err();
    assert_eq!(error.to_string(), "it failed");
}

#[test]
fn a_generated_archive_that_does_not_fit_is_an_error_whose_suggestion_is_enough() {
    let archive = cpio("init", b"x");
    for (len, unpacked) in [(41 * MIB, 41 * MIB), (20 * MIB, 41 * MIB), (20 * MIB, 1500 * MIB)] {
        let error = generate(&memory(32 * MIB), &bzimage(CODE), &archive, len, unpacked).unwrap_err();
        let text = error.to_string();
        let Error::NoRoom { suggestion, needed, .. } = error else { panic!("{text}") };
        assert!(needed.0 > len + unpacked && suggestion.0 >= needed.0, "{text}");
        let start =
            format!("guest memory of 32M is too small for 'generated': its files take {}, and ", ByteSize(unpacked));
        let end = format!("{needed} are needed until they are unpacked; try --memory {suggestion}");
        assert_eq!(text, start + &end);
        generate(&memory(suggestion.0), &bzimage(CODE), &archive, len, unpacked).unwrap();
    }
    let mut image = bzimage(CODE);
    image[images::INITRD_ADDR_MAX..][..4].copy_from_slice(&(33 * MIB as u32 - 1).to_le_bytes());
    let error = generate(&memory(64 * MIB), &image, &cpio("a", b""), 41 * MIB, 41 * MIB).unwrap_err();
    let expected = "'generated' is too large to be an initramfs: its files take 41M, and this kernel takes 31M at most";
    assert_eq!(error.to_string(), expected);
}

// ---- Compressed kernels --------------------------------------------------------------------------------------------

/// `elf(CODE)`, as the programs of the same names compress it (lz4: with `-l` the legacy frame, which the kernel uses).
const COMPRESSED: [(&str, &[u8]); 6] = [
    ("gzip", include_bytes!("fixtures/kernel.gz")),
    ("xz", include_bytes!("fixtures/kernel.xz")),
    ("xz --x86 --check=crc32", include_bytes!("fixtures/kernel.bcj.xz")),
    ("zstd", include_bytes!("fixtures/kernel.zst")),
    ("lz4", include_bytes!("fixtures/kernel.lz4")),
    ("lz4 -l", include_bytes!("fixtures/kernel.legacy.lz4")),
];

#[test]
fn a_compressed_kernel_is_loaded_like_its_content() {
    for (format, kernel) in COMPRESSED {
        let memory = memory(64 * MIB);
        let entry = load_into(&memory, kernel, &[], "").unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_eq!((entry.protocol, entry.address.0), (Protocol::Elf, MIB), "{format}");
        assert_eq!(bytes(&memory, MIB, CODE.len()), CODE, "{format}");
    }
}

#[test]
fn a_compressed_kernel_that_is_cut_off_is_an_error() {
    let memory = memory(64 * MIB);
    for (format, kernel) in COMPRESSED {
        for len in (7..kernel.len() - 8).step_by(5) {
            let error = load_into(&memory, &kernel[..len], &[], "").expect_err(format).to_string();
            assert!(error.starts_with("cannot use kernel "), "{format}: {error}");
        }
    }
}

#[test]
fn the_release_is_that_of_the_header_or_of_the_banner() {
    let release = |content: &[u8]| kernel_release(file(content).as_path()).unwrap();
    let mut image = bzimage(CODE);
    assert_eq!(release(&image), None);
    image[0x20e..0x210].copy_from_slice(&0x60u16.to_le_bytes());
    for (text, expected) in [("6.1.0-1 (x@y) #1 SMP", Some("6.1.0-1")), ("6.12.0\0", Some("6.12.0")), ("../x", None)] {
        image[0x260..0x260 + text.len()].copy_from_slice(text.as_bytes());
        assert_eq!(release(&image).as_deref(), expected);
    }
    for (at, expected) in [(0, Some("6.8.1+")), ((1 << 20) - 2200, Some("6.8.1+"))] {
        let image = [&elf(CODE)[..], &vec![b'L'; at], b"Linux version %s\0Linux version 6.8.1+ (x@y)\0"].concat();
        assert_eq!(release(&image).as_deref(), expected, "at {at}");
    }
    assert_eq!(release(&elf(CODE)), None);
}

#[test]
fn the_configuration_in_a_kernel_is_found() {
    let config = |content: &[u8]| embedded_config(file(content).as_path()).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"CONFIG_FUSE_FS=y\n").unwrap();
    let embedded = [b"text IKCFG_ST", &gzip.finish().unwrap()[..], b"IKCFG_ED text"].concat();
    let vmlinux = [&elf(CODE)[..], &embedded].concat();
    assert_eq!(config(&vmlinux).as_deref(), Some("CONFIG_FUSE_FS=y\n"));
    assert_eq!((config(&elf(CODE)), config(&bzimage(CODE))), (None, None));
    // A bzImage with a payload behind its protected-mode code, compressed by lz4 and with its size appended.
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&vmlinux).unwrap();
    let payload = [&lz4.finish().unwrap()[..], &[0x12; 4]].concat();
    let mut image = bzimage(CODE);
    let setup_len = (usize::from(image[0x1f1]) + 1) * 512;
    let offset = (image.len() - setup_len) as u32;
    image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    assert_eq!(config(&image).as_deref(), Some("CONFIG_FUSE_FS=y\n"));
}

#[test]
fn damaged_compressed_data_is_no_panic() {
    for (_, kernel) in COMPRESSED {
        for (at, value) in (0..kernel.len()).flat_map(|at| [0, 0xff, kernel[at] ^ 1].map(|value| (at, value))) {
            let mut damaged = kernel.to_vec();
            damaged[at] = value;
            let _ = kernel_release(file(&damaged).as_path()); // some of the data is not checked
        }
    }
}
