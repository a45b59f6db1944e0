//! The nodes.

pub mod payload {
    //! The types that cross ports.
    pub mod image;
    pub mod mask;
    pub mod table;
}

pub mod image {
    //! Nodes that change pictures and masks.
    pub mod grid;
    pub mod mask;
    pub mod resample;
    pub mod resize_image;
}

pub mod load {
    //! Nodes that read files.
    pub mod load_image;
    pub mod load_mask;
}

pub mod fields {
    //! Stand-in for `retouch_graph::fields` until it lands.
    use std::path::PathBuf;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use serde::{Deserialize, Serialize};

    /// A path.
    #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
    #[serde(transparent)]
    pub struct AssetPath(pub PathBuf);

    /// A text with `{param}` in it.
    #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
    #[serde(transparent)]
    pub struct Template(pub String);

    impl JsonSchema for AssetPath {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "AssetPath".into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "format": "path"})
        }
    }

    impl JsonSchema for Template {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Template".into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({"type": "string", "format": "template"})
        }
    }
}
