//! Which names of a pickle are known, which act, and which are classes of other programs.

use super::parts::{Kind, Known};

/// The bytes that a text of characters below 256 stands for.
pub(super) fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

/// What a global is, if it is known. Both spellings of modules that moved are.
pub(super) fn known(module: &str, name: &str) -> Option<Known> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Known::TensorV1,
        ("torch._utils", "_rebuild_tensor_v2") => Known::TensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Known::TensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Known::Parameter
        }
        (
            "torch._utils",
            "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor" | "_rebuild_mlc_tensor",
        ) => Known::FromNumpy,
        ("torch._tensor", "_rebuild_from_type_v2") => Known::FromType,
        ("torch", "Tensor")
        | ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch.nn", "Parameter") => Known::TensorClass,
        ("torch", "Size") => Known::Size,
        ("torch", "device") => Known::Device,
        ("torch" | "torch.cuda" | "torch.storage", class) if class.ends_with("Storage") => {
            Known::Storage(match class.strip_suffix("Storage")? {
                "Float" => "F32",
                "Half" => "F16",
                "BFloat16" => "BF16",
                "Double" => "F64",
                "Long" => "I64",
                "Int" => "I32",
                "Short" => "I16",
                "Char" => "I8",
                "Byte" | "Untyped" => "U8",
                "Bool" => "BOOL",
                "ComplexFloat" => "C64",
                "ComplexDouble" => "C128",
                _ => return None,
            })
        }
        ("torch", dtype) => Known::Type(match dtype {
            "float32" => "F32",
            "float16" => "F16",
            "bfloat16" => "BF16",
            "float64" => "F64",
            "float8_e4m3fn" => "F8_E4M3",
            "float8_e5m2" => "F8_E5M2",
            "int64" => "I64",
            "int32" => "I32",
            "int16" => "I16",
            "int8" => "I8",
            "uint64" => "U64",
            "uint32" => "U32",
            "uint16" => "U16",
            "uint8" => "U8",
            "bool" => "BOOL",
            "complex64" => "C64",
            "complex128" => "C128",
            _ => return None,
        }),
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => {
            Known::Dictionary(Kind::Plain)
        }
        ("torch.nn.modules.container", "ParameterDict" | "ParameterList") => {
            Known::Dictionary(Kind::Parameters)
        }
        ("argparse", "Namespace") => Known::Dictionary(Kind::Namespace),
        ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => Known::Sequence,
        ("_codecs", "encode") => Known::Encode,
        ("numpy", "dtype") => Known::NumpyType,
        ("numpy", "ndarray") => Known::NumpyArray,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Known::NumpyScalar,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Known::NumpyRebuild,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Known::NumpyBuffer,
        _ => return None,
    })
}

/// What a function of torch makes that has no elements at places of a storage, by its name in back quotes.
pub(super) fn unread(name: &str) -> Option<&'static str> {
    Some(match name {
        "`torch._utils._rebuild_qtensor`"
        | "`torch.QInt8Storage`"
        | "`torch.QUInt8Storage`"
        | "`torch.QInt32Storage`" => "a quantised tensor of torch",
        "`torch._utils._rebuild_sparse_tensor`"
        | "`torch._utils._rebuild_sparse_csr_tensor`"
        | "`torch.serialization._get_layout`" => "a sparse tensor",
        "`torch._utils._rebuild_nested_tensor`" => "a nested tensor",
        "`torch._utils._rebuild_meta_tensor_no_storage`" => "a tensor without numbers",
        _ => return None,
    })
}

/// Modules of Python's library (and of programs that pickle code) whose objects act on the machine, or make others act:
/// nothing of them is data.
pub(super) const ACTING: [&str; 107] = [
    "__builtin__",
    "_asyncio",
    "_ctypes",
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_io",
    "_operator",
    "_pickle",
    "_posixsubprocess",
    "_socket",
    "_thread",
    "_winapi",
    "aifc",
    "ast",
    "asyncio",
    "atexit",
    "bdb",
    "builtins",
    "bz2",
    "cProfile",
    "cffi",
    "cgi",
    "cloudpickle",
    "cmd",
    "code",
    "codeop",
    "commands",
    "concurrent",
    "contextlib",
    "copy_reg",
    "copyreg",
    "ctypes",
    "curses",
    "dbm",
    "dill",
    "dis",
    "distutils",
    "doctest",
    "ensurepip",
    "faulthandler",
    "fileinput",
    "ftplib",
    "functools",
    "gc",
    "glob",
    "gzip",
    "http",
    "httplib",
    "idlelib",
    "imaplib",
    "imp",
    "importlib",
    "inspect",
    "io",
    "joblib",
    "linecache",
    "logging",
    "lzma",
    "mailbox",
    "marshal",
    "mmap",
    "multiprocessing",
    "nntplib",
    "nt",
    "ntpath",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "popen2",
    "poplib",
    "posix",
    "posixpath",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "resource",
    "runpy",
    "setuptools",
    "shelve",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tarfile",
    "telnetlib",
    "tempfile",
    "test",
    "threading",
    "timeit",
    "tkinter",
    "types",
    "urllib",
    "webbrowser",
    "winreg",
    "xmlrpc",
    "zipfile",
    "zipimport",
];

/// Whether a global that is not known is the name of a class, whose objects may be passed over, by Python's conventions:
/// the machine never looks it up. What is made with the class's own `__new__` is of a class; what is `called` may be a
/// function.
pub(super) fn is_foreign_class(module: &str, name: &str, called: bool) -> bool {
    let parts = || module.split('.').take(1).chain(name.split('.'));
    if module.is_empty() || name.is_empty() || parts().any(|part| ACTING.contains(&part)) {
        return false;
    }
    if !called {
        return true;
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_class = last
        .trim_start_matches('_')
        .starts_with(|c: char| c.is_ascii_uppercase());
    let of_torch = ["torch", "numpy"].contains(&module.split('.').next().unwrap_or(module));
    is_class && !of_torch || module == "datetime"
}

/// The opcodes that Python knows and that are not read.
pub(super) fn opcode(byte: u8) -> Option<&'static str> {
    Some(match byte {
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        b'P' => "PERSID",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return None,
    })
}
