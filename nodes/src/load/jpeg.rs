//! Whether the coded data of a JPEG is whole. Decoders draw what they can of damaged files, and pass over it in silence;
//! here the Huffman codes of all blocks are read (baseline, extended and progressive: ISO/IEC 10918-1), without their
//! pixels.
//!
//! The time that this takes is bounded: a file has a limited number of scans and of Huffman tables, and the reading ends
//! when the work of this thread is cancelled.

use retouch_graph::interrupt;

/// The scans of a file: the decoder's own limit for progressive pictures. Encoders write about ten.
const MOST_SCANS: usize = 100;
/// The Huffman tables that a file defines: four for each scan.
const MOST_TABLES: usize = 4 * MOST_SCANS;
/// The components of a scan, by the standard.
const MOST_PARTS: u8 = 4;

/// What is wrong with the data of a JPEG, in words; `None` where nothing is, of kinds of JPEG that are not looked at
/// (arithmetic coding, lossless, hierarchical), and when the work of this thread [was cancelled](interrupt).
pub(crate) fn damage(bytes: &[u8]) -> Option<&'static str> {
    match Walk::new(bytes).run() {
        Ok(()) | Err(Stop::Unknown | Stop::Cancelled) => None,
        Err(Stop::Short) => Some("its data ends before its last block"),
        Err(Stop::Code) => Some("its data has a code that means nothing"),
        Err(Stop::Long) => Some("its blocks end long before its data does"),
        Err(Stop::Scans) => Some("it has more than 100 scans"),
        Err(Stop::Tables) => Some("it has more than 400 Huffman tables"),
    }
}

/// Why the reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The data ends too early.
    Short,
    /// A code is not in its table, or leads beyond its block.
    Code,
    /// Much data is left when all blocks are read.
    Long,
    /// There are more than [`MOST_SCANS`].
    Scans,
    /// There are more than [`MOST_TABLES`].
    Tables,
    /// The work of this thread was cancelled.
    Cancelled,
    /// It is not known how to read it, or its segments are not what they should be: the decoder's to say.
    Unknown,
}

type Read<T> = Result<T, Stop>;

/// A Huffman table: length and symbol of the code that 16 bits begin with; length 0 where none does.
struct Table(Vec<(u8, u8)>);

impl Table {
    /// From the numbers of codes of each length, and the symbols.
    fn new(counts: &[u8], symbols: &[u8]) -> Read<Self> {
        let mut table = vec![(0, 0); 1 << 16];
        let (mut code, mut next) = (0usize, symbols.iter());
        for (length, &count) in (1u8..).zip(counts) {
            for symbol in next.by_ref().take(usize::from(count)) {
                let width = 1usize << (16 - length);
                let from = code << (16 - length);
                let entries = table.get_mut(from..from + width).ok_or(Stop::Unknown)?;
                entries.fill((length, *symbol));
                code += 1;
            }
            code <<= 1;
        }
        Ok(Self(table))
    }
}

/// The bits of a scan, up to the next marker.
struct Bits<'a> {
    bytes: &'a [u8],
    place: usize,
    held: u64,
    count: u32,
}

impl Bits<'_> {
    /// Takes bytes in until there are no more before a marker, or 32 bits are held.
    fn fill(&mut self) {
        while self.count <= 32 {
            let Some(&byte) = self.bytes.get(self.place) else {
                return;
            };
            if byte == 0xff {
                if self.bytes.get(self.place + 1) != Some(&0) {
                    return;
                }
                self.place += 1;
            }
            self.place += 1;
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    fn take(&mut self, count: u8) -> Read<u32> {
        let count = u32::from(count);
        if self.count < count {
            self.fill();
            if self.count < count {
                return Err(Stop::Short);
            }
        }
        self.count -= count;
        Ok((self.held >> self.count) as u32 & ((1 << count) - 1))
    }

    fn symbol(&mut self, table: &Table) -> Read<u8> {
        if self.count < 16 {
            self.fill();
        }
        // Beyond the end of the data are zeros, which may not be taken.
        let next = if self.count >= 16 {
            self.held >> (self.count - 16)
        } else {
            self.held << (16 - self.count)
        };
        let (length, symbol) = table.0[next as usize & 0xffff];
        if length == 0 {
            return Err(if self.count < 16 {
                Stop::Short
            } else {
                Stop::Code
            });
        }
        self.take(length)?;
        Ok(symbol)
    }

    /// Drops what is left before the next marker; gives how many whole bytes that was.
    fn skip(&mut self) -> usize {
        let held = self.count as usize / 8;
        (self.held, self.count) = (0, 0);
        let start = self.place;
        while let Some(&byte) = self.bytes.get(self.place) {
            match (byte, self.bytes.get(self.place + 1)) {
                (0xff, Some(0)) => self.place += 2,
                (0xff, _) => break,
                _ => self.place += 1,
            }
        }
        held + self.place - start
    }

    /// Goes past a restart marker.
    fn restart(&mut self) -> Read<()> {
        self.skip();
        while self.bytes.get(self.place + 1) == Some(&0xff) {
            self.place += 1;
        }
        match self.bytes.get(self.place + 1) {
            Some(0xd0..=0xd7) => {
                self.place += 2;
                Ok(())
            }
            _ => Err(Stop::Short),
        }
    }
}

/// A component of the picture.
struct Component {
    id: u8,
    /// Blocks of it in a unit of several components.
    across: usize,
    down: usize,
    /// Blocks of it on the whole picture, without those that only fill units up.
    columns: usize,
    rows: usize,
    /// Blocks in a row with these.
    stride: usize,
    /// Of a progressive picture: which coefficients of each block are not 0.
    nonzero: Vec<u64>,
}

/// What a scan says of a component.
struct Part {
    component: usize,
    dc: usize,
    ac: usize,
}

/// What a scan is of.
#[derive(Clone, Copy)]
struct Band {
    first: u8,
    last: u8,
    refines: bool,
}

struct Walk<'a> {
    bytes: &'a [u8],
    place: usize,
    progressive: bool,
    components: Vec<Component>,
    /// Units across and down.
    units: (usize, usize),
    tables: [[Option<Table>; 4]; 2],
    interval: usize,
    /// Tables and scans so far.
    defined: usize,
    scans: usize,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            place: 2,
            progressive: false,
            components: Vec::new(),
            units: (0, 0),
            tables: Default::default(),
            interval: 0,
            defined: 0,
            scans: 0,
        }
    }

    fn run(&mut self) -> Read<()> {
        loop {
            // Bytes between segments are passed over, as decoders do.
            let rest = self.bytes.get(self.place..).ok_or(Stop::Unknown)?;
            let at = rest.iter().position(|byte| *byte == 0xff);
            self.place += at.ok_or(Stop::Unknown)?;
            let marker = *self.bytes.get(self.place + 1).ok_or(Stop::Unknown)?;
            match marker {
                0xff => {
                    self.place += 1;
                    continue;
                }
                0x00 | 0x01 | 0xd0..=0xd8 => {
                    self.place += 2;
                    continue;
                }
                0xd9 => return Ok(()),
                _ => {}
            }
            let length = self.bytes.get(self.place + 2..self.place + 4);
            let length = length.and_then(<[u8]>::first_chunk).ok_or(Stop::Unknown)?;
            let end = self.place + 2 + usize::from(u16::from_be_bytes(*length));
            let segment = self.bytes.get(self.place + 4..end).ok_or(Stop::Unknown)?;
            self.place = end;
            match marker {
                0xc0..=0xc2 => self.frame(segment, marker == 0xc2)?,
                0xc4 => self.tables(segment)?,
                0xdd => {
                    let interval = segment.first_chunk().ok_or(Stop::Unknown)?;
                    self.interval = usize::from(u16::from_be_bytes(*interval));
                }
                0xda => self.scan(segment)?,
                // Other ways of coding.
                0xc3 | 0xc5..=0xcf => return Err(Stop::Unknown),
                _ => {}
            }
        }
    }

    fn frame(&mut self, segment: &[u8], progressive: bool) -> Read<()> {
        let [_, h0, h1, w0, w1, count, rest @ ..] = segment else {
            return Err(Stop::Unknown);
        };
        let height = usize::from(u16::from_be_bytes([*h0, *h1]));
        let width = usize::from(u16::from_be_bytes([*w0, *w1]));
        let parts: Vec<[u8; 3]> = rest.as_chunks().0.to_vec();
        let sampling = |part: &[u8; 3]| (usize::from(part[1] >> 4), usize::from(part[1] & 15));
        let sound = parts
            .iter()
            .map(sampling)
            .all(|(h, v)| (1..=4).contains(&h) && (1..=4).contains(&v));
        // A height of 0 is said after the first scan; several frames are a hierarchy.
        if height == 0
            || width == 0
            || parts.len() != usize::from(*count)
            || !sound
            || !self.components.is_empty()
        {
            return Err(Stop::Unknown);
        }
        let most = |side: fn((usize, usize)) -> usize| {
            parts
                .iter()
                .map(|part| side(sampling(part)))
                .max()
                .ok_or(Stop::Unknown)
        };
        let (h, v) = (most(|s| s.0)?, most(|s| s.1)?);
        self.units = (width.div_ceil(8 * h), height.div_ceil(8 * v));
        self.progressive = progressive;
        self.components = parts
            .iter()
            .map(|part| {
                let (across, down) = sampling(part);
                let stride = self.units.0 * across;
                let blocks = if progressive {
                    stride * self.units.1 * down
                } else {
                    0
                };
                Component {
                    id: part[0],
                    across,
                    down,
                    columns: (width * across).div_ceil(h).div_ceil(8),
                    rows: (height * down).div_ceil(v).div_ceil(8),
                    stride,
                    nonzero: vec![0; blocks],
                }
            })
            .collect();
        Ok(())
    }

    fn tables(&mut self, mut segment: &[u8]) -> Read<()> {
        while let Some((&head, rest)) = segment.split_first() {
            self.defined += 1;
            if self.defined > MOST_TABLES {
                return Err(Stop::Tables);
            }
            let (counts, rest) = rest.split_at_checked(16).ok_or(Stop::Unknown)?;
            let total = counts.iter().map(|count| usize::from(*count)).sum();
            let (symbols, rest) = rest.split_at_checked(total).ok_or(Stop::Unknown)?;
            let of = self.tables.get_mut(usize::from(head >> 4));
            let slot = of.and_then(|of| of.get_mut(usize::from(head & 15)));
            *slot.ok_or(Stop::Unknown)? = Some(Table::new(counts, symbols)?);
            segment = rest;
        }
        Ok(())
    }

    fn scan(&mut self, segment: &[u8]) -> Read<()> {
        self.scans += 1;
        if self.scans > MOST_SCANS {
            return Err(Stop::Scans);
        }
        let (&count, rest) = segment.split_first().ok_or(Stop::Unknown)?;
        if count > MOST_PARTS {
            return Err(Stop::Unknown);
        }
        let (parts, rest) = rest
            .split_at_checked(2 * usize::from(count))
            .ok_or(Stop::Unknown)?;
        let parts: Vec<Part> = parts
            .as_chunks()
            .0
            .iter()
            .map(|[id, tables]| {
                let component = self.components.iter().position(|c| c.id == *id);
                Ok(Part {
                    component: component.ok_or(Stop::Unknown)?,
                    dc: usize::from(tables >> 4 & 3),
                    ac: usize::from(tables & 3),
                })
            })
            .collect::<Read<_>>()?;
        let &[first, last, shifts] = rest.first_chunk().ok_or(Stop::Unknown)?;
        let band = Band {
            first,
            last,
            refines: shifts >> 4 > 0,
        };
        let bad = first > last || last > 63 || (first > 0 && parts.len() != 1);
        if parts.is_empty() || self.progressive && bad {
            return Err(Stop::Unknown);
        }
        let mut bits = Bits {
            bytes: self.bytes,
            place: self.place,
            held: 0,
            count: 0,
        };
        // A scan of one component has its blocks one by one, one of several has them in units.
        let one = match parts.as_slice() {
            [part] => Some((
                self.components[part.component].columns,
                self.components[part.component].rows,
            )),
            _ => None,
        };
        let (across, down) = one.unwrap_or(self.units);
        let mut run = 0u32;
        for unit in 0..across * down {
            if self.interval > 0 && unit > 0 && unit % self.interval == 0 {
                bits.restart()?;
                run = 0;
            }
            let (x, y) = (unit % across, unit / across);
            if x == 0 && interrupt::is_requested() {
                return Err(Stop::Cancelled);
            }
            for part in &parts {
                let component = &self.components[part.component];
                let (columns, rows) = match one {
                    Some(_) => (1, 1),
                    None => (component.across, component.down),
                };
                let stride = component.stride;
                for block in 0..columns * rows {
                    let at = (y * rows + block / columns) * stride + x * columns + block % columns;
                    if self.progressive {
                        self.progressive_block(&mut bits, part, band, at, &mut run)?;
                    } else {
                        self.block(&mut bits, part)?;
                    }
                }
            }
        }
        let start = self.place;
        let left = bits.skip();
        self.place = bits.place;
        // Some cameras leave a few bytes; what decodes in too few bits leaves many.
        if left > 64 && left * 20 > self.place - start {
            return Err(Stop::Long);
        }
        Ok(())
    }

    fn table(&self, class: usize, index: usize) -> Read<&Table> {
        self.tables[class][index].as_ref().ok_or(Stop::Unknown)
    }

    /// A block of a sequential picture.
    fn block(&self, bits: &mut Bits<'_>, part: &Part) -> Read<()> {
        let length = bits.symbol(self.table(0, part.dc)?)?;
        bits.take(size(length)?)?;
        let ac = self.table(1, part.ac)?;
        let mut k = 1;
        while k < 64 {
            let (zeros, length) = halves(bits.symbol(ac)?);
            if length == 0 {
                if zeros < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += zeros;
            if k > 63 {
                return Err(Stop::Code);
            }
            bits.take(length)?;
            k += 1;
        }
        Ok(())
    }

    /// What a scan of a progressive picture has of a block. `run` counts blocks that have nothing more in the band.
    fn progressive_block(
        &mut self,
        bits: &mut Bits<'_>,
        part: &Part,
        band: Band,
        at: usize,
        run: &mut u32,
    ) -> Read<()> {
        if band.first == 0 {
            if band.refines {
                bits.take(1)?;
            } else {
                let length = bits.symbol(self.table(0, part.dc)?)?;
                bits.take(size(length)?)?;
            }
            return Ok(());
        }
        let nonzero = &self.components[part.component].nonzero;
        let mut set = *nonzero.get(at).ok_or(Stop::Unknown)?;
        let is_set = |set: u64, k: u8| set >> k & 1 == 1;
        let mut k = band.first;
        if !band.refines && *run > 0 {
            *run -= 1;
            return Ok(());
        }
        if *run == 0 {
            let table = self.table(1, part.ac)?;
            while k <= band.last {
                let (mut zeros, length) = halves(bits.symbol(table)?);
                if length == 0 && zeros < 15 {
                    *run = (1 << zeros) + bits.take(zeros)?;
                    break;
                }
                if !band.refines {
                    if length == 0 {
                        k += 16;
                        continue;
                    }
                    k += zeros;
                    if k > 63 {
                        return Err(Stop::Code);
                    }
                    bits.take(length)?;
                    set |= 1 << k;
                    k += 1;
                    continue;
                }
                if length > 0 {
                    bits.take(1)?;
                }
                // Each coefficient on the way that is not 0 has a bit; `zeros` of the others are passed over.
                while k <= band.last {
                    if is_set(set, k) {
                        bits.take(1)?;
                    } else if zeros == 0 {
                        break;
                    } else {
                        zeros -= 1;
                    }
                    k += 1;
                }
                if length > 0 {
                    if k > 63 {
                        return Err(Stop::Code);
                    }
                    set |= 1 << k;
                }
                k += 1;
            }
        }
        if *run > 0 {
            while band.refines && k <= band.last {
                if is_set(set, k) {
                    bits.take(1)?;
                }
                k += 1;
            }
            *run -= 1;
        }
        if let Some(slot) = self.components[part.component].nonzero.get_mut(at) {
            *slot = set;
        }
        Ok(())
    }
}

/// A number of zeros, and the length of what follows.
fn halves(symbol: u8) -> (u8, u8) {
    (symbol >> 4, symbol & 15)
}

/// The length of a difference of DC: 16 at most, and that of lossless pictures alone.
fn size(length: u8) -> Read<u8> {
    if length > 15 {
        Err(Stop::Code)
    } else {
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use image::ExtendedColorType;
    use image::codecs::jpeg::JpegEncoder;

    use super::*;

    /// A picture with something in every block.
    fn picture(quality: u8) -> Vec<u8> {
        let mut state = 1u32;
        let pixels: Vec<u8> = (0..3 * 120 * 88)
            .map(|i: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (i / 3 % 120) as u8 + (state >> 26) as u8
            })
            .collect();
        let mut out = Vec::new();
        JpegEncoder::new_with_quality(&mut out, quality)
            .encode(&pixels, 120, 88, ExtendedColorType::Rgb8)
            .unwrap();
        out
    }

    /// Where the coded data begins.
    fn data(bytes: &[u8]) -> usize {
        let at = bytes
            .windows(2)
            .position(|pair| pair == [0xff, 0xda])
            .unwrap();
        at + 2 + usize::from(bytes[at + 3])
    }

    #[test]
    fn a_jpeg_with_a_cut_a_hole_or_zeros_is_damaged_and_a_whole_one_is_not() {
        for quality in [10, 75, 100] {
            let whole = picture(quality);
            assert_eq!(damage(&whole), None);
            let (start, length) = (data(&whole), whole.len());
            let middle = start + (length - start) / 2;
            let tenth = (length - start) / 10;
            let cut = [&whole[..middle], &[0xff, 0xd9]].concat();
            assert!(damage(&cut).is_some(), "{quality}");
            let hole = [&whole[..middle], &whole[middle + tenth..]].concat();
            assert!(damage(&hole).is_some(), "{quality}");
            let mut zeros = whole.clone();
            zeros[middle..middle + 3 * tenth].fill(0);
            assert!(damage(&zeros).is_some(), "{quality}");
            // A few bytes before the end are what some cameras leave.
            let more = [&whole[..length - 2], &[0; 8], &[0xff, 0xd9]].concat();
            assert_eq!(damage(&more), None);
        }
    }

    #[test]
    fn a_progressive_jpeg_is_read_to_its_end() {
        let whole = include_bytes!("../../tests/data/progressive.jpg");
        assert_eq!(damage(whole), None);
        let start = data(whole);
        let cut = [&whole[..start + 4], &[0xff, 0xd9]].concat();
        assert!(damage(&cut).is_some());
    }

    #[test]
    fn a_jpeg_has_a_limited_number_of_scans_and_tables() {
        let whole = picture(75);
        let end = whole.len() - 2;
        let header = whole.windows(2).position(|pair| pair == [0xff, 0xda]);
        let scan = &whole[header.unwrap()..end];
        let of_scans = |count| [&whole[..end], &scan.repeat(count - 1), &whole[end..]].concat();
        assert_eq!(damage(&of_scans(MOST_SCANS)), None);
        let expected = format!("it has more than {MOST_SCANS} scans");
        assert_eq!(damage(&of_scans(MOST_SCANS + 1)), Some(&*expected));
        // Tables by the hundred, in segments of their own and in one.
        let count = |bytes: &[u8]| {
            let mut walk = Walk::new(bytes);
            walk.run().unwrap();
            walk.defined
        };
        let table = [&[0x00, 1], &[0; 15][..], &[0]].concat();
        let with = |segments: &[u8]| [&whole[..2], segments, &whole[2..]].concat();
        let segment = [&[0xff, 0xc4, 0, 20][..], &table].concat();
        let left = MOST_TABLES - count(&whole);
        let length = u16::try_from(2 + table.len() * (left + 1)).unwrap();
        let one = [
            &[0xff, 0xc4][..],
            &length.to_be_bytes(),
            &table.repeat(left + 1),
        ]
        .concat();
        assert_eq!(damage(&with(&segment.repeat(left))), None);
        let expected = format!("it has more than {MOST_TABLES} Huffman tables");
        for segments in [&segment.repeat(left + 1), &one] {
            assert_eq!(damage(&with(segments)), Some(&*expected));
        }
    }

    #[test]
    fn the_reading_ends_when_it_is_cancelled() {
        let whole = picture(75);
        let cut = [&whole[..data(&whole) + 4], &[0xff, 0xd9]].concat();
        let cancel = retouch_graph::Cancel::new();
        interrupt::within(&cancel, || {
            assert!(damage(&cut).is_some());
            cancel.cancel();
            assert_eq!(damage(&cut), None, "it is not read so far");
        });
    }

    #[test]
    fn nothing_makes_it_panic() {
        for whole in [
            picture(50),
            include_bytes!("../../tests/data/progressive.jpg").to_vec(),
        ] {
            let mut state = 7u32;
            for _ in 0..2000 {
                let mut bytes = whole.clone();
                for _ in 0..3 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = state as usize % bytes.len();
                    bytes[at] = (state >> 24) as u8;
                }
                let _ = damage(&bytes);
                let _ = damage(&bytes[..state as usize % bytes.len()]);
            }
        }
    }
}
